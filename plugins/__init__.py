"""Task-Plugins as data (cards, registry, mapping of compound tasks), their networks and their training."""
