"""Backends: different ways to compute one thing, `AttendRequest` -> attention output."""
