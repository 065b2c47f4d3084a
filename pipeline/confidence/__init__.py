"""How far a result can be relied on, and warnings where it cannot."""
