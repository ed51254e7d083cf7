"""Several machines: Ray Data for folders and object stores, Ray Serve for the API."""
