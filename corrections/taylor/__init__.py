"""Derivatives along paths of the parameters: jets, Taylor models, linearizations."""
