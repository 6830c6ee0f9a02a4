"""What a memory is where Chroma is called: its record, the chunks of a long text, the indexes that follow, the history."""
