"""``python run.py bench kernels``: the GPU kernels, right first and then timed."""
