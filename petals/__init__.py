"""What the author of a petal uses, and the petals that are shipped."""
