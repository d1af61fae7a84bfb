"""Kernels that are stored: the tangent kernel, O_3 and O_4, their averages and rates."""
