"""The host diffusers."""
