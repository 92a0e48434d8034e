"""What a bundle has learned, task by task: every figure comes from the exported graphs and the runtime.

Importing the package, or any task in it, imports neither PyTorch nor ONNX.
"""
