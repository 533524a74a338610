"""What knows ComfyUI's internals."""
