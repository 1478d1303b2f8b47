"""The crash-safe journal of a session: see docs/journal.md."""
