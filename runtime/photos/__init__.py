"""Photos: read, written, as pixels, with their metadata. Knows no model."""
