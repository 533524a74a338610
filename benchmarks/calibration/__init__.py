"""Budgets by measured error, profiles and calibrated masks at equal work: `python run.py bench calibration`."""
