"""How far a network is from its linearisation, from its start, and from another one."""
