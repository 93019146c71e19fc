"""Files of other programs, read and written: llm.c's and Hugging Face's."""
