"""Sessions of one job: who is which rank, who meters what, clocks, spools, and the merge at the end."""
