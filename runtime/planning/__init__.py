"""Planning before a run: sizes, tiles, memory, quality, concurrency."""
