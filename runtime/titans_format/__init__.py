"""titans_format: what a bundle is, for whoever writes one and whoever reads one.

Needs neither NumPy nor PyTorch nor ONNX. Every other package may import it; it imports none of them.
"""
