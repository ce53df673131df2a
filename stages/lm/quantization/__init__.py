"""The model in few bits: schemes, GPTQ, the entropy-coded file."""
