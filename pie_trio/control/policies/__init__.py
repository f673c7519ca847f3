"""Batching policies: when a batch is dispatched, and how large it may be.

Chosen by name (``--policy rendezvous``), with arguments after a colon (``k_or_t:8,0.016``), or
given by another package under the entry point ``pie_trio.batch_policies``.
"""

from __future__ import annotations

from pie_trio.control.policies.base import BatchPolicy, BatchState
from pie_trio.control.policies.named import make_policy, policy_names

__all__ = ["BatchPolicy", "BatchState", "make_policy", "policy_names"]
