"""Triton kernels for block-sparse attention: tensors in, tensors out. Imports torch and triton only, knows no policy."""
