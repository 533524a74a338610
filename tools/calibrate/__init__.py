"""Profiles from the command line: `python run.py calibrate --help`."""
