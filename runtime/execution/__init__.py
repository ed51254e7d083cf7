"""Run loaded engines: one plugin over one photo, on the host or as a captured graph."""
