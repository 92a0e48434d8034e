"""A bundle in NVIDIA Triton: a model repository for its Python backend, and what runs inside of it."""
