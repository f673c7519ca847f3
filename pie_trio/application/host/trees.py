"""An instance with its children and theirs: they are charged together.

Otherwise whoever reaches a limit would launch a child, which has a limit of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.application.host.instance_log import LogAllowance
from pie_trio.config import SharedLimits
from pie_trio.control.quotas import Quota
from pie_trio.control.totals import Totals

if TYPE_CHECKING:
    from pie_trio.application.computing import Account
    from pie_trio.config import InstanceLimits
    from pie_trio.control.placing import Placement

__all__ = ["Tree"]

MAX_SUBSCRIPTIONS = 256
MAX_HTTP_REQUESTS = 64
"""At once; each instance has a lower limit of its own, beyond which its requests wait."""


class Tree:
    """What the instances of one tree share.

    Args:
        name: Of the instance at its root.
        limits: Of that instance.
        num_models: Of the server; limits of an instance are for each of them.

    Attributes:
        quota: What they hold now.
        totals: What they have used in all: ``tokens``, ``launches`` of children,
            ``http_requests``, ``http_bytes``, ``log_bytes``.
        log_allowance: What they may log.
        account: Of the CPU time that they use; None where nobody counts it.
        placement: Of the instance at its root: the others are where that is.
    """

    def __init__(self, name: str, limits: InstanceLimits, *, num_models: int) -> None:
        self.quota = Quota(
            f"{name} and its children",
            SharedLimits(
                pages=limits.max_pages * num_models,
                embeds=limits.max_embeds * num_models,
                queues=limits.max_queues,
                commands_in_flight=limits.max_in_flight,
                mask_bytes=limits.max_mask_bytes,
                command_bytes=limits.max_command_bytes,
                processors=limits.max_processors,
                processor_bytes=limits.max_processor_bytes,
                # Its own outbox and inbox, and those between it and a child.
                unread_bytes=4 * limits.max_unread_bytes,
                request_bytes=limits.max_request_bytes,
                http_requests=MAX_HTTP_REQUESTS,
                subscriptions=MAX_SUBSCRIPTIONS,
                instances=limits.max_descendants + 1,
            ),
        )
        self.totals = Totals(
            {
                "tokens": limits.max_tokens,
                "launches": limits.max_launches,
                "http_requests": limits.max_http_requests,
                "http_bytes": limits.max_http_bytes,
                "log_bytes": limits.max_log_bytes,
            }
        )
        self.log_allowance = LogAllowance(
            limits.log_bytes, limits.log_bytes_per_second, self.totals
        )
        self.account: Account | None = None
        self.placement: Placement | None = None

    def charge(self, seconds: float) -> None:
        """Charge CPU time that was used for one of them, in whatever thread."""
        if self.account is not None:
            self.account.charge(seconds)
