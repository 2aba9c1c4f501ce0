"""Equivariant networks: the types of a model's values, and the patterns that follow from them."""
