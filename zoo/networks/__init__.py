"""Networks, what is made of them, and their infinite-width limits."""
