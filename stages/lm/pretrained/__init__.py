"""Models to start from: Hugging Face folders or our own checkpoints in `data/base/`."""
