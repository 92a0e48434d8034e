"""One stream of memory: its session, the calls that make its next state, and its file."""
