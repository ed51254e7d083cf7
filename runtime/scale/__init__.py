"""Many machines, by engines that others maintain: Ray Data for folders and object stores, Ray Serve for the API."""
