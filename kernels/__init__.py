"""Triton kernels for block-sparse attention: tensors in, tensors out. They import torch and triton and know no policy."""
