"""ONNX graphs as files from outside: read without onnx, and held against the manifest before anything runs them."""
