"""Networks of other libraries as models of this one: what is theirs, and which layers it knows."""
