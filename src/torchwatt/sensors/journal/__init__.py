"""The sampler process's journal of readings. Numpy-free."""
