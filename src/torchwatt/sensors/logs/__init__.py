"""Power logs that other programs wrote: their encodings, units, times, layouts and cards."""
