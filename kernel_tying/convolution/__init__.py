"""Tied convolution on group sums: K products for each pair of channels instead of one for each position of the kernel."""
