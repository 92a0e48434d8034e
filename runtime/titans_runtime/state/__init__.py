"""State as immutable values on any device: blocks, executors and lanes."""
