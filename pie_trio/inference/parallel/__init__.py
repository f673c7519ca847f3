"""Tensor parallelism: one model over several ranks, each with its part of every layer."""
