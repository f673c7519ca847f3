"""The command line against a server: deploy, launch, ps, logs, kill."""
