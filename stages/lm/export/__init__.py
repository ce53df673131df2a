"""The model in other programs' formats: Hugging Face, GGUF."""
