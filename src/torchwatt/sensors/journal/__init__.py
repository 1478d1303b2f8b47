"""Readings on the disk while they are made. Numpy-free: the sampler process writes them."""
