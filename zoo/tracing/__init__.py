"""Programs that JAX has traced, and stand-ins for layers that are seen in them."""
