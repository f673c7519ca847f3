"""Pie: a server for programs that drive LLM generation themselves."""

from pie_trio._version import __version__

__all__ = ["__version__"]
