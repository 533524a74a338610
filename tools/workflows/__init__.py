"""The workflow files: made, checked, photographed."""
