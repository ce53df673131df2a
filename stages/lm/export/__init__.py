"""Writers of other programs' model formats: Hugging Face, PEFT, GGUF, Ollama."""
