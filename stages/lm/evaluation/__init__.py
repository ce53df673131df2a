"""What `evaluate` measures: loss, exact answers, compressors, verbatim copies, surprisal."""
