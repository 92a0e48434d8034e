"""A bundle beside its model: whether they agree, and how far a lower precision drifts."""
