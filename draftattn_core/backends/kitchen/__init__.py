"""The backend on comfy-kitchen's `sol_attn`, the kernel behind ComfyUI's own sparse attention."""
