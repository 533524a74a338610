"""What stands in for skipped blocks."""
