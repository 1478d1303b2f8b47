"""Merge ranks into one job: align clocks, count machines once, give their joules to ranks and layers. Pure."""
