"""Gradient descent in steps under a frozen kernel, and which steps are stable."""
