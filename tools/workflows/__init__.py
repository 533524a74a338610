"""The workflow files: made, checked, photographed; and pictures of runs for docs/browser.md."""
