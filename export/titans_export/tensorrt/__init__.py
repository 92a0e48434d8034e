"""TensorRT engines of the graphs of a bundle."""
