"""Best-first search for the likeliest continuation of a text."""
