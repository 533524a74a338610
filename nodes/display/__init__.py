"""What nodes show: pictures and text."""
