"""What evaluate measures besides loss: answers, copies, compressors."""
