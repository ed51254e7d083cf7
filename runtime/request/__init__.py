"""A request in words, and which plugins answer it."""
