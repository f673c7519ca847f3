"""``/mcp``: programs that are published as tools, for clients of the Model Context Protocol."""
