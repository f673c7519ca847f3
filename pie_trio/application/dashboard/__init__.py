"""The dashboard: static pages over the server's API, and the routes that hand them out."""
