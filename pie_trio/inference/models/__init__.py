"""One module a family of models: configuration, weights and mathematics."""
