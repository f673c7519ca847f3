"""What the clients of one server may use; the home of these defaults."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServerLimits"]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits and times of programs, instances and their events.

    Attributes:
        max_upload_bytes: Of a program as it is sent.
        max_programs: Of an owner.
        max_component_bytes: Of a component as it is sent.
        max_components: Of the programs of an owner.
        max_adapter_bytes: Of an adapter as it is sent, and of its files.
        compile_seconds: For a launch to wait until its component is compiled.
        inspect_seconds: For a program to say what its arguments are.
        max_events: Events of an instance that are kept for clients that attach again, and most
            that wait for the client that launched it.
        max_event_bytes: The same for their size.
        max_ended: Instances that are kept after their end, for their events and logs.
        max_ended_bytes: What their events and logs may take together.
        ended_seconds: How long they are kept.
        lease_seconds: For the client that launched an instance to begin to listen.
        max_answer_bytes: Of the events in an answer that is one JSON document.
        heartbeat_seconds: After so long without an event a stream says that it is there.
        send_seconds: For an instance to make room for a message.
    """

    max_upload_bytes: int = 8 << 20
    max_programs: int = 1000
    max_component_bytes: int = 64 << 20
    max_components: int = 32
    max_adapter_bytes: int = 256 << 20
    compile_seconds: float = 30.0
    inspect_seconds: float = 10.0
    max_events: int = 4096
    max_event_bytes: int = 4 << 20
    max_ended: int = 256
    max_ended_bytes: int = 64 << 20
    ended_seconds: float = 600.0
    lease_seconds: float = 5.0
    max_answer_bytes: int = 16 << 20
    heartbeat_seconds: float = 15.0
    send_seconds: float = 30.0
