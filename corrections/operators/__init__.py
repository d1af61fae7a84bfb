"""Linear maps that are not stored: the kernel, the Hessian of the loss, and their spectra."""
