"""What the handlers of one server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_trio.application.authoring.manifest import Manifest, parse_block
from pie_trio.application.lifecycle.programs import make_program
from pie_trio.application.server.owners import Gate
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.server.inspecting import Inspector
    from pie_trio.application.server.metrics import ServerMetrics
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.program_store import ProgramStore
    from pie_trio.application.server.registry import InstanceRegistry
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.control.served_model import ServedModel

__all__ = ["ServerState"]

INLINE_NAME = "inline"
LAUNCH_FIELDS = ("program", "arguments", "detach")


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the handlers of one server share. It is open as long as the server is.

    Attributes:
        models: By name; the first is the default.
        programs: What can be launched by name.
        inspector: What programs say of themselves.
        registry: The instances.
        metrics: Counts requests and instances.
        gate: Finds out who sends a request.
    """

    models: Mapping[str, ServedModel]
    programs: ProgramStore
    inspector: Inspector
    registry: InstanceRegistry
    metrics: ServerMetrics
    gate: Gate = field(default_factory=Gate)

    async def launch(self, asked: object, *, owner: Owner) -> RunningInstance:
        """Launch what a client asks for: ``program``, ``arguments``, ``detach``.

        Raises:
            PieError: It cannot be launched.
        """
        fields = _object(asked, "a launch", LAUNCH_FIELDS)
        arguments = fields.get("arguments", {})
        is_detached = fields.get("detach", False)
        if not isinstance(is_detached, bool):
            raise BadArgumentError("detach must be true or false")
        source, manifest = await self._find(fields.get("program"), owner)
        return await self.registry.launch(
            source,
            _object(arguments, "arguments"),
            owner=owner,
            manifest=manifest,
            is_detached=is_detached,
        )

    async def _find(self, program: object, owner: Owner) -> tuple[Program, Manifest]:
        if isinstance(program, str):
            found = await self.programs.find(program, owner=owner)
            return found.source, found.manifest
        if program is None:
            raise BadArgumentError(
                "a launch needs a program: its name, source or files"
            )
        given = _object(program, "program, if it is no name,", ("source", "files"))
        if len(given) != 1:
            raise BadArgumentError("program must be a name, or have source or files")
        files = given.get("files", {"app.py": given.get("source")})
        texts = _object(files, "files")
        for path, text in texts.items():
            if not isinstance(text, str):
                raise BadArgumentError(f"{path} must be the text of a module")
        source = make_program(
            INLINE_NAME,
            [
                (path, text.encode("utf-8", "surrogatepass"))
                for path, text in texts.items()
            ],
        )
        block = parse_block(source.modules[source.entry], source.entry)
        return source, block or Manifest()


def _object(
    value: object, what: str, known: tuple[str, ...] | None = None
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadArgumentError(f"{what} must be a JSON object")
    found: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if known is not None and (unknown := [key for key in found if key not in known]):
        raise BadArgumentError(
            f"{what} has {unknown[0]!r}, which is not known: expected {', '.join(known)}"
        )
    return found
