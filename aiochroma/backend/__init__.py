"""What carries requests out: Chroma embedded in this process, or a Chroma server; their faults, and repeating calls."""
