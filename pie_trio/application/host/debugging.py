"""Answers for people who debug: what an instance and its queues are doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pie_trio.control.explaining import explain_step, summarize
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.control.queues import CommandQueue
    from pie_trio.control.served_model import ServedModel
    from pie_trio.control.trace import StepRecord

__all__ = ["answer_instance", "answer_queue", "answer_usage"]

NUM_STEPS_EXPLAINED = 16
NUM_TRACED = 2048
"""Of the latest commands and steps; to look at all that is kept would hold everybody up."""


def answer_queue(session: Session, queue: CommandQueue, query: str) -> Any:
    """Answer a question about a queue.

    Raises:
        BadArgumentError: There is no such question.
    """
    model = queue.model
    answers = {
        "commands": lambda: {
            "unfinished": queue.num_unfinished,
            "priority": queue.priority.name.lower(),
        },
        "pages": lambda: _pages(session, model),
        "batcher": lambda: {
            "policy": model.config.policy,
            "contention": model.config.contention,
            "steps": model.batcher.num_steps,
            "step_seconds": model.batcher.step_seconds,
            "unfinished": model.batcher.num_unfinished,
        },
        "explain": lambda: _explain(session, model.batcher.trace.steps[-NUM_TRACED:]),
    }
    return _answer(answers, query)


def answer_instance(session: Session, query: str) -> Any:
    """Answer a question about an instance.

    Raises:
        BadArgumentError: There is no such question.
    """
    answers = {
        "limits": lambda: asdict(session.limits),
        "usage": lambda: answer_usage(session),
        "pages": lambda: {
            name: _pages(session, session.models[name]) for name in session.tenants
        },
        "tickets": lambda: {
            "open": len(session.tickets),
            "most": session.tickets.max_in_flight,
            "unfinished": session.in_flight.count,
        },
        "trace": lambda: [
            record._asdict()
            for name in session.tenants
            for record in session.models[name].batcher.trace.latest_commands(NUM_TRACED)
            if record.tenant == session.launch.instance_id
        ],
    }
    return _answer(answers, query)


def answer_usage(session: Session) -> dict[str, Any]:
    """Return what an instance holds and has used, with its limits.

    ``held`` and ``in_all`` are of the instance with its children, each by kind with ``used`` and
    ``limit``; ``cpu_seconds`` too.
    """
    tree = session.tree
    return {
        "held": _used(tree.quota.used, tree.quota.limits),
        "in_all": _used(tree.totals.used, tree.totals.limits),
        "cpu_seconds": 0.0 if tree.account is None else tree.account.used_seconds,
        "lines_left_out": session.log.num_left_out,
        "children": session.children.num_alive,
        "depth": session.launch.depth,
    }


def _used(
    used: Mapping[str, int], limits: Mapping[str, int | None]
) -> dict[str, dict[str, int | None]]:
    return {kind: {"used": used[kind], "limit": limits[kind]} for kind in used}


def _pages(session: Session, model: ServedModel) -> dict[str, Any]:
    table, pool = session.pages[model.info.name], model.pool
    held = set(table.values())
    return {
        "handles": len(table),
        "pages": len(held),
        "on_device": sum(int(pool.physical[page]) >= 0 for page in held),
        "in_host_memory": sum(page in pool.swapped for page in held),
        "free": pool.num_free,
        "total": pool.num_pages,
        "page_size": pool.page_size,
    }


def _explain(session: Session, steps: Sequence[StepRecord]) -> dict[str, Any]:
    own = session.launch.instance_id
    latest = [
        # Who else runs here is nobody's business.
        step._replace(late=tuple(n if n == own else "another" for n in step.late))
        for step in steps[-NUM_STEPS_EXPLAINED:]
    ]
    return {
        "text": summarize(steps).text(),
        "steps": [step._asdict() | {"text": explain_step(step)} for step in latest],
    }


def _answer(answers: Mapping[str, Any], query: str) -> Any:
    if query not in answers:
        raise BadArgumentError(
            f"there is no debug query {query!r}: ask one of {', '.join(answers)}"
        )
    return answers[query]()
