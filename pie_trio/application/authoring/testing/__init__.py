"""Runs of programs in tests: scripted models, virtual time, recordings."""
