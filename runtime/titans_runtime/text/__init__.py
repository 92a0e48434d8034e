"""Between text and token ids: the tokenizer, sampling, and where a text ends."""
