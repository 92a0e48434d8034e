"""What is measured on bundles where they run: how fast they are (`speed`) and what they have learned (`quality`)."""
