"""What one instance did: its commands, the batches that they were in, and the spans it marked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.control.explaining import main_reason

if TYPE_CHECKING:
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.state import ServerState

__all__ = ["MAX_COMMANDS", "make_timeline"]

MAX_COMMANDS = 2000


def make_timeline(state: ServerState, instance: RunningInstance) -> dict[str, Any]:
    """Return the latest commands of an instance, oldest first, as JSON can carry it.

    Times are in seconds since the launch. What the traces have forgotten is not there.
    """
    name, began = instance.instance_id, instance.launched_clock
    commands, batches = list[dict[str, Any]](), list[dict[str, Any]]()
    num_commands = 0
    engines = [(key, one) for key, m in state.models.items() for one in m.replicas]
    for model_name, model in engines:
        trace = model.batcher.trace
        own = [c for c in trace.commands_after(began) if c.tenant == name]
        num_commands += len(own)
        own = own[:MAX_COMMANDS][::-1]
        commands += [
            {
                "model": model_name,
                "kind": command.kind.lower(),
                "queue": command.queue,
                "tokens": command.num_tokens,
                "submitted": _since(began, command.submitted_at),
                "started": _since(began, command.started_at)
                if command.started_at
                else None,
                "finished": _since(began, command.finished_at),
                "batch": command.step,
                "size": command.batch_size,
                "outcome": command.outcome,
            }
            for command in own
        ]
        numbers = {command.step for command in own}
        batches += [
            {
                "model": model_name,
                "number": step.number,
                "kind": step.kind.lower(),
                "size": step.size,
                "tokens": step.num_tokens,
                "began": _since(began, step.chosen_at),
                "ended": _since(began, step.finished_at),
                "reason": main_reason(step).value,
            }
            for step in trace.steps
            if step.number in numbers
        ]
    commands.sort(key=lambda command: command["finished"])
    spans = [
        {
            "name": span.name,
            "began": _since(began, span.begins_at),
            "ended": None if span.ends_at is None else _since(began, span.ends_at),
        }
        for span in state.registry.launcher.services.timeline.spans
        if span.instance == name
    ]
    return {
        **instance.status(),
        "at": time.time(),
        "now": _since(began, instance.ended_clock or trio.current_time()),
        "commands": commands[-MAX_COMMANDS:],
        "commands_left_out": max(0, num_commands - MAX_COMMANDS),
        "batches": batches,
        "spans": spans[-MAX_COMMANDS:],
    }


def _since(began: float, at: float) -> float:
    return round(at - began, 6)
