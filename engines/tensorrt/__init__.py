"""TensorRT and TensorRT-RTX: engines built ahead of time, and run on a GPU."""
