"""Turns a model whose state is external tensors into a bundle of ONNX graphs, and proves that they agree."""
