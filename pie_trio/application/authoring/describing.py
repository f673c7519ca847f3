"""What a program takes and returns, asked of the program itself in the sandbox. Needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.authoring.packing import load_packed
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.lifecycle.instances import (
    link_component,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import ComponentProgram
from pie_trio.application.run.setup import prepare_component, prepare_language
from pie_trio.application.services import Services
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import InstanceLimits

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.wasm.runtime import LinkedComponent
    from pie_trio.config import WasmConfig

__all__ = ["describe_program"]


def describe_program(path: Path, wasm: WasmConfig) -> dict[str, Any]:
    """Return name, documentation and the JSON Schemas of arguments and result. Blocks.

    Args:
        path: Of a .py file, a folder, a .zip or a component.
        wasm: Where compiled components are kept.

    Raises:
        ProgramError: The program cannot be read.
        GuestFailedError: It cannot be loaded, or its signature is none that JSON can carry.
    """
    if path.suffix == ".wasm":
        packed = load_packed(path)
        component = prepare_component(wasm, path)
        with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
            linked = link_component(runtime, component)
            program = ComponentProgram(packed.name, linked, packed.digest)
            return trio.run(_describe, linked, program)
    source = load_project(path).program
    component = prepare_language(wasm)
    with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
        return trio.run(_describe, link_language(runtime, component), source)


async def _describe(linked: LinkedComponent, program: Program) -> dict[str, Any]:
    async with open_launcher(linked, Services(), InstanceLimits()) as launcher:
        return await launcher.prepare(program, {}).describe()
