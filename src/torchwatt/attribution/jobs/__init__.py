"""Ranks to one job: clocks aligned, machines counted once, their joules given to ranks and layers. Pure."""
