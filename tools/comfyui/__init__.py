"""A ComfyUI on this machine: where it is, and a server of it."""
