"""What models learn and are judged on: documents, text, recall, needles, DNA and series, as batches of NumPy arrays."""
