"""Training of real networks: the truth that predictions are compared with."""
