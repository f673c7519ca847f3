"""What ``pie top`` shows: a state that follows the server's stream, and how it looks. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

__all__ = ["TopState", "render"]

NUM_POINTS = 120
RECENT = 6
"""Points that rates are taken over: three seconds."""
SPARKS = "▁▂▃▄▅▆▇█"
NAME_WIDTH = 10
HEADER_LINES = 4
MODEL_LINES = 6
STYLES = {"succeeded": "green", "failed": "red", "cancelled": "dim", "running": ""}

Fields = dict[str, Any]

# Name, column of the row, and from which width of the terminal on it is there.
COLUMNS = (
    ("STATE", 0),
    ("AGE", 0),
    ("PAGES", 44),
    ("QUEUE", 58),
    ("SAMPLED", 66),
    ("COMPUTED", 78),
    ("PROGRAM", 94),
    ("OWNER", 108),
)


@dataclass(slots=True)
class TopState:
    """What the server has told so far.

    Attributes:
        general: What belongs to no instance and no model; empty before the first snapshot.
        instances: By id.
        models: By name.
        problem: Why there is nothing new at the moment.
    """

    general: Fields = field(default_factory=dict[str, Any])
    instances: dict[str, Fields] = field(default_factory=dict[str, Fields])
    models: dict[str, Fields] = field(default_factory=dict[str, Fields])
    problem: str = ""

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take an event of the stream; those of other kinds are passed over."""
        if kind == "snapshot":
            self.instances = {one["id"]: one for one in data["instances"]}
            self.models = {one["name"]: dict(one) for one in data["models"]}
        elif kind == "changes":
            for name in data["gone"]:
                self.instances.pop(name, None)
            self.instances |= {one["id"]: one for one in data["instances"]}
            for fresh in data["models"]:
                known = self.models[fresh["name"]]
                points = [*known["points"], *fresh["points"]][-NUM_POINTS:]
                self.models[fresh["name"]] = {**known, **fresh, "points": points}
        else:
            return
        parts = ("instances", "models", "gone")
        self.general = {key: one for key, one in data.items() if key not in parts}
        self.problem = ""


def render(
    state: TopState, *, url: str, width: int, height: int | None
) -> RenderableType:
    """Return the screen.

    Args:
        state: What is shown.
        url: Of the server.
        width: Of the terminal, in columns.
        height: Its lines, to which the instances are cut; None for all of them.
    """
    general = state.general
    lines: list[RenderableType] = []
    if not general:
        return Text(state.problem or f"waiting for {url}", style="dim")
    running, most = general["running"], general["max_instances"]
    head = Text(f"pie {general['version']}", style="bold")
    head.append(f"  {url}  ", style="dim")
    head.append(f"{running} of {most} instances run")
    lines += [_cut(head, width)]
    if state.problem:
        lines.append(_cut(Text(state.problem, style="bold red"), width))
    for name, model in state.models.items():
        lines += [Text(""), *_model_lines(name, model, width)]
    lines.append(Text(""))
    rows = sorted(
        state.instances.values(),
        key=lambda one: (one["state"] != "running", -one["launched_at"]),
    )
    if height is not None:
        used = HEADER_LINES + sum(
            MODEL_LINES + _has_replicas(model) for model in state.models.values()
        )
        room = max(1, height - used)
        left_out = len(rows) - room
        rows = rows[:room]
    else:
        left_out = 0
    lines.append(_table(rows, general["at"], width) if rows else _nothing(width))
    if left_out > 0:
        lines.append(Text(f"{left_out} more: pie ps --all", style="dim"))
    return Group(*lines)


def _model_lines(name: str, model: Mapping[str, Any], width: int) -> list[Text]:
    points: Sequence[Sequence[float]] = model["points"]
    recent = points[-RECENT:]
    seconds = sum(point[1] for point in recent) or 1.0
    batches, commands, tokens = (sum(p[at] for p in recent) for at in (2, 3, 4))
    wait = max((point[6] for point in recent), default=0.0)
    size = f"{commands / batches:.1f} commands each" if batches else "idle"
    room = max(0, min(60, width - 48))
    pages, free = model["pages"], model["pages_free"]
    swapped = f", {model['pages_swapped']} swapped" if model["pages_swapped"] else ""
    rates = (
        ("tokens/s", tokens / seconds, [p[4] / p[1] for p in points], ""),
        ("batches/s", batches / seconds, [p[2] / p[1] for p in points], size),
    )
    title = Text(f"{name}  ", style="bold") + _dim(model["architecture"])
    if model["state"] != "ready":
        title.append(f"  engine {model['state']}", style="bold red")
    lines = [_cut(title, width)]
    for label, rate, values, note in rates:
        line = Text(f"{label:<{NAME_WIDTH}}{rate:>9,.0f}  ")
        line.append(_spark(values, room), style="cyan")
        lines.append(_cut(line + _dim(f"  {note}"), width))
    waits = f"{wait * 1000:.2f} ms"
    lines.append(
        _cut(Text(f"{'wait p95':<{NAME_WIDTH}}{waits:>9}"), width),
    )
    used = pages - free
    share = f"{100 * used / max(1, pages):.0f} %"
    bar = Text(f"{'KV pages':<{NAME_WIDTH}}{share:>9}  ")
    bar.append("█" * round(room * used / max(1, pages)), style="cyan")
    bar.append("░" * (room - round(room * used / max(1, pages))), style="dim")
    lines.append(_cut(bar + _dim(f"  {used:,} of {pages:,}{swapped}"), width))
    if _has_replicas(model):
        lines.append(_cut(_replicas(model["replicas"]), width))
    return lines


def _has_replicas(model: Mapping[str, Any]) -> bool:
    return len(model.get("replicas", ())) > 1


def _replicas(replicas: Sequence[Mapping[str, Any]]) -> Text:
    """Return how full each replica is, and how many instances it has."""
    line = Text(f"{'replicas':<{NAME_WIDTH}}")
    for number, one in enumerate(replicas):
        line.append(f"{number}: ", style="dim")
        if one["state"] == "ready":
            used = one["pages"] - one["pages_free"]
            share = f"{100 * used / max(1, one['pages']):.0f} %"
            line.append(f"{share}, {one['instances']} running   ")
        else:
            line.append(f"{one['state']}   ", style="bold red")
    return line


def _table(rows: Sequence[Mapping[str, Any]], now: float, width: int) -> Table:
    shown = [name for name, least in COLUMNS if width >= least]
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("INSTANCE", no_wrap=True, overflow="ellipsis", ratio=1)
    table.expand = True
    for name in shown:
        is_text = name in ("STATE", "PROGRAM", "OWNER")
        table.add_column(
            name,
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    for one in rows:
        seconds = one["seconds"]
        age = _age(now - one["launched_at"] if seconds is None else seconds)
        cells = {
            "STATE": "suspended" if one["suspended"] else one["state"],
            "AGE": age,
            "PAGES": f"{one['pages']:,}",
            "QUEUE": f"{one['queue']:,}",
            "SAMPLED": f"{one['tokens_sampled']:,}",
            "COMPUTED": f"{one['tokens_computed']:,}",
            "PROGRAM": one["program"],
            "OWNER": one["owner"],
        }
        texts = [Text(one["id"]), *(Text(cells[name]) for name in shown)]
        table.add_row(*texts, style=STYLES.get(one["state"], ""))
    return table


def _nothing(width: int) -> Text:
    return _cut(_dim("nothing runs: pie launch NAME starts a program"), width)


def _spark(values: Sequence[float], room: int) -> str:
    """Return a line of blocks, the latest value at its right end."""
    shown = list(values)[-room:] if room else []
    top = max(shown, default=0.0) or 1.0
    blocks = [SPARKS[min(7, int(8 * value / top))] if value else " " for value in shown]
    return "".join(blocks).rjust(room)


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0.0, seconds):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


def _dim(text: str) -> Text:
    return Text(text, style="dim")


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
