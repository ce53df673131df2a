"""The training loop and its parts: optimizer, initialisation, resume."""
