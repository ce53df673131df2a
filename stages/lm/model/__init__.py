"""The transformer, its checkpoint file, and how it is run and scored."""
