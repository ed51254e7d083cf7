"""The runtime, without PyTorch: takes a photo and a request, returns the restored photo."""
