"""What will run, decided before it runs: sizes, tiles, memory, quality, concurrency."""
