"""The kernel of a solve, which does not move: stored, or an operator."""
