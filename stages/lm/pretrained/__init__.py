"""Weights and tokenizers that training can start from."""
