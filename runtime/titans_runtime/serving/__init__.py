"""Many sessions of one model together: a scheduler, lanes for those that decode, and a limit on resident memory."""
