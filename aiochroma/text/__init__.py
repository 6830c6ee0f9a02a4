"""The index of the memories: their words, metadata and vectors in a file, the search, and how well a text covers a question."""
