"""Gradients in factors: what enters a layer and what leaves it, and the products of them."""
