"""The loop without PyTorch: a photo and a request in, the restored photo out."""
