"""The plugin of authors, whose fixture ``pie`` the tests here use as authors do."""

from __future__ import annotations

from inferlet_py.testing import pie, pie_sandbox

__all__ = ["pie", "pie_sandbox"]
