"""What the values of widgets mean."""
