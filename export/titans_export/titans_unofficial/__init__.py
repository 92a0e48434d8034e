"""Models that were trained with titans-unofficial, as bundles."""
