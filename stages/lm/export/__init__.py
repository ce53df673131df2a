"""Writers of other programs' model formats: Hugging Face folders and GGUF files."""
