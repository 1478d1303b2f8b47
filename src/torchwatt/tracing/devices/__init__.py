"""Device work of a live session: short recorded windows, joined by a worker process, filled in between."""
