"""Changes of a finished graph, each a file that is named after its effect."""
