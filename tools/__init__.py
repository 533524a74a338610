"""Tools for developers: workflow files, where ComfyUI is, kernels compiled ahead of time."""
