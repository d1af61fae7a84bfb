"""Gradient flows in continuous time, solved adaptively."""
