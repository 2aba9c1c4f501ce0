"""Tied convolution by group sums: K products per pair of channels instead of one per kernel position."""
