"""The `titans` command: thin click commands over `titans_core`, `titans_export` and `titans_runtime`."""
