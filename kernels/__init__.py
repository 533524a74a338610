"""Triton kernels for block-sparse attention: tensors in, tensors out. They know torch and Triton, but no policy."""
