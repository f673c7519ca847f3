"""Inferlets of the simulation. Each plans by its seed, and tells its client what it has seen."""
