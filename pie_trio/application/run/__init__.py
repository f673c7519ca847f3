"""``pie run``: one program, an engine in the process, the terminal as its client."""
