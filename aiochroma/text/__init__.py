"""Full-text search over memories: words, the index on disk, the search, and how well a text covers a question."""
