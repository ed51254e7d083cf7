"""From a request in words to the plugins for it."""
