"""Loading a model and generating text with it."""
