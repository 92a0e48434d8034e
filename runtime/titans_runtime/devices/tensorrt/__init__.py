"""TensorRT and TensorRT-RTX, used directly: engines, CUDA memory and streams."""
