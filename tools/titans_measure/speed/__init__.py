"""How fast a bundle runs on this machine, and what share of the machine's own speed that is."""
