"""``python run.py bench frontier``: what a user gets for his waiting time, every lever at equal work."""
