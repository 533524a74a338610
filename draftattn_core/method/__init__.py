"""The method: which block pairs are computed, what stands in for the others, and what calibration knows about both."""
