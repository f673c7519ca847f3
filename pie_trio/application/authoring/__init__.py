"""What authors of programs use: projects and their manifests, checks, builds, tests."""
