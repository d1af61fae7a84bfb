"""Infinitely wide networks: their kernels, layer by layer."""
