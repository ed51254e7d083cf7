"""Photos: reading, writing, pixels, metadata. Independent of any model."""
