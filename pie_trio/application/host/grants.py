"""What an instance may do beyond its sandbox: refused unless granted, with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pie_trio.errors import ForbiddenError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["check_grant"]


def check_grant(
    session: Session, grant: Literal["logits", "publish", "topics", "spawn"], what: str
) -> None:
    """Raise unless an instance was granted something.

    Args:
        session: Of the instance.
        grant: A field of :class:`~pie_trio.application.services.Grants`.
        what: It wants to do, for the message.

    Raises:
        ForbiddenError: It was not.
    """
    if not getattr(session.launch.grants, grant):
        raise ForbiddenError(
            f"{what} needs the grant `{grant}`: say `{grant} = true` in [tool.pie.grants] of the "
            f"program, and ask whoever runs the server for --allow-{grant} on"
        )
