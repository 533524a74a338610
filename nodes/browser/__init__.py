"""What the pack's scripts in the browser ask the server, and what it tells them."""
