"""From a recorded call to an ONNX graph, and what one call of it costs."""
