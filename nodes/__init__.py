"""ComfyUI nodes: patch a model, say what happened. The only floor that imports ComfyUI."""
