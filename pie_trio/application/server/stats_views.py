"""A sample as one owner may see it, as JSON can carry it: whole, or what has changed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_trio._version import __version__
from pie_trio.application.server.stats_pages import (
    encode_changes,
    encode_runs,
    hide_others,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.server.stats import Sample, Sampler
    from pie_trio.application.server.stats_points import Point
    from pie_trio.control.served_model import ServedModel
    from pie_trio.control.trace import StepRecord

__all__ = ["View", "view_of"]

MAX_CELLS = 8192
MAX_RUNNING = 500
MAX_ENDED = 50


@dataclass(slots=True)
class View:
    """What one owner sees of a sample.

    Attributes:
        sample: Of which.
        key: Whose it is, among the views of the sample.
        general: What belongs to no instance and no model.
        instances: By id: the newest that run and the latest that ended.
        maps: By model: ``[num_cells]`` int32, and how many pages a cell stands for.
        constants: By model: what does not change, or hardly ever.
    """

    sample: Sample
    key: tuple[str, bool]
    general: Mapping[str, Any]
    instances: Mapping[str, Mapping[str, Any]]
    maps: Mapping[str, tuple[NDArray[np.int32], int]]
    constants: Mapping[str, Mapping[str, Any]]
    _snapshot: str = field(default="", init=False)
    _changes: str = field(default="", init=False)

    def snapshot(self) -> str:
        """Return everything as a JSON text."""
        if not self._snapshot:
            models = [
                {
                    **self._numbers(name),
                    **self.constants[name],
                    "points": [_point(point) for point in model.points],
                    "batches": [self._batch(step) for step in model.batches],
                    "map": {
                        "cells": len(self.maps[name][0]),
                        "pages_per_cell": self.maps[name][1],
                        "runs": encode_runs(self.maps[name][0]),
                    },
                }
                for name, model in self.sample.models.items()
            ]
            self._snapshot = json.dumps(
                {
                    **self.general,
                    "instances": list(self.instances.values()),
                    "models": models,
                },
                ensure_ascii=False,
            )
        return self._snapshot

    def changes(self) -> str | None:
        """Return what is new since the sample before, as a JSON text; None if that is unknown."""
        before = self.sample.previous
        old = None if before is None else before.views.get(self.key)
        if not isinstance(old, View):
            return None
        if not self._changes:
            models = [
                {
                    **self._numbers(name),
                    "points": [_point(point) for point in model.points[-1:]],
                    "batches": [
                        self._batch(step)
                        for step in model.batches[len(model.batches) - model.num_new :]
                    ],
                    "map": {
                        "changes": encode_changes(old.maps[name][0], self.maps[name][0])
                    },
                }
                for name, model in self.sample.models.items()
            ]
            changed = [
                one
                for key, one in self.instances.items()
                if old.instances.get(key) != one
            ]
            gone = [key for key in old.instances if key not in self.instances]
            self._changes = json.dumps(
                {**self.general, "instances": changed, "gone": gone, "models": models},
                ensure_ascii=False,
            )
        return self._changes

    def _numbers(self, name: str) -> dict[str, Any]:
        model = self.sample.models[name]
        return {
            "name": name,
            "state": model.state,
            "pages_free": model.num_free,
            "pages_swapped": model.num_swapped,
            "exports": model.num_exports,
            "unfinished": model.num_unfinished,
            "replicas": [
                {
                    "state": one.state,
                    "pages": one.num_pages,
                    "pages_free": one.num_free,
                    "unfinished": one.num_unfinished,
                    "instances": one.num_instances,
                }
                for one in model.replicas
            ],
        }

    def _batch(self, step: StepRecord) -> list[Any]:
        """Return number, kind, size, tokens, when it began, and how long it took."""
        return [
            *(step.number, step.kind.lower(), step.size, step.num_tokens),
            round(step.chosen_at + self.sample.offset, 4),
            round(step.finished_at - step.chosen_at, 6),
        ]


def view_of(sample: Sample, state: ServerState, sampler: Sampler, owner: Owner) -> View:
    """Return what an owner sees of a sample."""
    key = owner.name, owner.is_admin
    found = sample.views.get(key)
    if isinstance(found, View):
        return found
    began = time.perf_counter()
    own = state.registry.list(owner=owner)
    running = [one for one in own if one.state == "running"]
    ended = [one for one in own if one.state != "running"]
    shown = ended[-MAX_ENDED:] + running[-MAX_RUNNING:]
    codes = [
        sample.codes[one.instance_id]
        for one in running
        if one.instance_id in sample.codes
    ]
    general = {
        "version": __version__,
        "server": sampler.server,
        "owner": owner.name,
        "number": sample.number,
        "at": round(sample.at, 3),
        "interval": round(sample.interval_seconds, 3),
        "running": len(running),
        "running_on_server": state.registry.launcher.num_running,
        "max_instances": state.registry.launcher.max_instances,
        "draining": state.registry.is_draining,
    }
    view = View(
        sample,
        key,
        general,
        {one.instance_id: _instance(one, sample) for one in shown},
        {
            name: hide_others(model.codes, codes, MAX_CELLS)
            for name, model in sample.models.items()
        },
        {name: _constants(model) for name, model in state.models.items()},
    )
    sample.views[key] = view
    sampler.charge(time.perf_counter() - began)
    return view


def _constants(model: ServedModel) -> dict[str, Any]:
    return {
        "architecture": model.info.architecture,
        "page_size": model.info.page_size,
        "pages": sum(one.pool.num_pages for one in model.replicas),
        "page_bytes": model.info.page_bytes,
        "max_positions": model.info.max_positions,
        "adapters": list(model.info.adapters),
        "policy": model.config.policy,
    }


def _instance(instance: RunningInstance, sample: Sample) -> dict[str, Any]:
    """Return what it is and holds; nothing in it changes while it does nothing."""
    status = instance.status()
    held = [
        found
        for model in sample.models.values()
        if (found := model.tenants.get(instance.instance_id)) is not None
    ]
    is_running = instance.state == "running"
    return {
        "id": instance.instance_id,
        "program": instance.program,
        "owner": instance.owner.name,
        "state": instance.state,
        "detached": instance.is_detached,
        "launched_at": round(instance.launched_at, 3),
        "seconds": None if is_running else round(status["seconds"], 3),
        "pages": sum(one.pages for one in held) if is_running else 0,
        "queue": sum(one.unfinished for one in held) if is_running else 0,
        "suspended": is_running and any(one.is_suspended for one in held),
        "tokens_computed": status.get("tokens_computed", 0),
        "tokens_sampled": status.get("tokens_sampled", 0),
        "code": sample.codes.get(instance.instance_id, 0) if is_running else 0,
    }


def _point(point: Point) -> list[float]:
    """Return when it ended, its seconds, batches, commands and tokens, and the two waits."""
    return [
        round(point.at, 3),
        round(point.seconds, 3),
        *(point.batches, point.commands, point.tokens),
        *(round(point.wait_p50, 6), round(point.wait_p95, 6)),
    ]
