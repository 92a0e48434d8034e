"""One memory per user behind an OpenAI-compatible server: `titans serve`."""
