"""Text and records to token ids and back."""
