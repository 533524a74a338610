"""Tools: profiles from the command line, workflow files, where ComfyUI is, kernels compiled ahead of time."""
