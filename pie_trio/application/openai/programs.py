"""Which program serves a model, and its launch with what a client asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pie_trio.application.openai.failures import OpenAIError
from pie_trio.errors import BusyError, GuestFailedError, NotFoundError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.openai.asked import Asked, Kind
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.server.stored_programs import StoredProgram

__all__ = ["Published", "find_model", "launch", "list_published"]

PREFIX = "openai_"
"""Programs of these names serve the server's own models."""

NEEDED: Mapping[Kind, str] = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
}


@dataclass(frozen=True)
class Published:
    """A program that is a model.

    Attributes:
        name: Of the model.
        created_at: In seconds since 1970; None for as long as the server.
        owner: Whose it is.
    """

    name: str
    created_at: float | None
    owner: str


async def list_published(state: ServerState, owner: Owner) -> list[Published]:
    """Return the programs of an owner that are models; not those hidden by a model's name."""
    found = list[Published]()
    for name in sorted(state.programs.names(owner) - state.models.keys()):
        try:
            program = await state.programs.find(name, owner=owner, waits=False)
        except (NotFoundError, BusyError, GuestFailedError, ProgramError):
            continue  # it was deleted meanwhile, or is a component that is not ready
        if NEEDED.keys() & set(program.manifest.publish):
            whose = "pie" if program.is_built_in else owner.name
            found.append(Published(name, program.uploaded_at, whose))
    return found


async def launch(
    state: ServerState, asked: Asked, kind: Kind, *, owner: Owner
) -> RunningInstance:
    """Launch the program that answers a request.

    Raises:
        OpenAIError: There is no such model, or the program cannot do what is asked for.
        PieError: It cannot be launched.
    """
    program = await find_model(state, asked.model, kind, owner=owner)
    described = await state.inspector.inspect(program.source, owner=owner.name)
    known: Mapping[str, Any] = described["arguments"]["properties"]
    if NEEDED[kind] not in known:
        raise OpenAIError(
            f"the program {program.name!r} cannot serve {kind}: its main function has no "
            f"parameter {NEEDED[kind]!r}",
            param="model",
            code="unsupported_model",
        )
    arguments = dict(asked.arguments)
    if asked.model in state.models and ("model" in known or len(state.models) > 1):
        arguments["model"] = asked.model
    for name in arguments:
        if name not in known:
            raise OpenAIError(
                f"{asked.origin(name)!r} is not supported by the program {program.name!r}, "
                f"which has no parameter {name!r}",
                param=asked.origin(name),
                code="unsupported_parameter",
            )
    instance = await state.registry.launch(
        program.source, arguments, owner=owner, manifest=program.manifest
    )
    instance.end_input()
    return instance


async def find_model(
    state: ServerState, model: str, kind: Kind, *, owner: Owner
) -> StoredProgram:
    """Return the program that serves a model.

    Raises:
        OpenAIError: There is no such model.
    """
    if model in state.models:
        return await state.programs.find(PREFIX + kind, owner=owner)
    try:
        program = await state.programs.find(model, owner=owner)
    except NotFoundError:
        there = [*state.models, *(p.name for p in await list_published(state, owner))]
        raise OpenAIError(
            f"there is no model {model!r}: the server has {', '.join(there)}",
            param="model",
            code="model_not_found",
            status=404,
        ) from None
    if kind not in program.manifest.publish:
        has = ", ".join(program.manifest.publish) or "nothing"
        raise OpenAIError(
            f"the program {model!r} is published for {has}, and not for {kind}: its manifest "
            f'says so, as `publish = ["{kind}"]` under [tool.pie]',
            param="model",
            code="model_not_found",
            status=404,
        )
    return program
