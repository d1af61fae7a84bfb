"""What layers do to the kernels of infinite width."""
