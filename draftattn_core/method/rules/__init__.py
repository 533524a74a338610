"""Selection rules: each file is one published or own way to choose the block pairs that are computed exactly."""
