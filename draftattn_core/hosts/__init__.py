"""Hosts that live outside ComfyUI: they translate a model's attention calls into calls of a `Session`."""
