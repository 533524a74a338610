"""Where tokens are: the token grid, its order, blocks, and the index tables made of them."""
