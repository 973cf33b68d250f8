"""Methods that learn the tokens of a tokenizer."""
