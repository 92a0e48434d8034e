"""What a model offers to be exported, and our own models at every precision."""
