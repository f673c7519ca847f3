"""``pie serve``: programs and their instances over HTTP and WebSocket."""
