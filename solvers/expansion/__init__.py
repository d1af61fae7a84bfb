"""Corrections of order 1/width to the outputs and the kernel in training."""
