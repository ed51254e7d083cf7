"""Noise schedules, samplers as tables, and the loop that applies them."""
