"""Layers: what a network is built of, each with its rule for infinite width."""
