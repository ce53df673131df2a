"""What is learned from: which of the user's files, which splits, which documents are equal."""
