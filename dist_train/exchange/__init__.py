"""How workers meet: the store (agreements and votes) and the collective (sums over a group)."""
