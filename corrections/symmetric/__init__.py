"""Functions of a symmetric matrix, with derivatives, and which of its eigenvalues are numbers."""
