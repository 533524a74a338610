"""A sampling run: settings, schedule, probe, report, and the one owner of them."""
