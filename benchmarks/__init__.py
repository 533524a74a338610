"""Benchmarks: `python run.py bench NAME`."""
