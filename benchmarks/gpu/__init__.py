"""``python run.py bench gpu --minutes N``: all that a GPU can tell, in the order of its worth, in the time there is."""
