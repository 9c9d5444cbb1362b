"""Words and pure decisions: nothing here opens a file, starts a thread or reads a clock."""
