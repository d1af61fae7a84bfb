"""O(1/width) corrections to the training of a network by squared loss."""
