"""The backends on our Triton kernels."""
