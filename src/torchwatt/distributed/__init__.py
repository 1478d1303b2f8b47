"""Sessions of one job: rank, assignment of meters, clock offsets, job folder, and the merge at the end."""
