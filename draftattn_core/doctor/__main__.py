"""``python run.py doctor``: what this machine is able to run."""

import sys

from .diagnose import main

sys.exit(main())
