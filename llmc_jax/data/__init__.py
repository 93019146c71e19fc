"""From text to batches: tokenizer, shards, loader."""
