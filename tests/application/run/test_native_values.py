"""Native mode hands the SDK what componentize-py hands it in Wasm."""

from __future__ import annotations

import ast
import dataclasses
import enum
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

import inferlet_py
from pie_trio.application.host.interface import answering, fallible, interface, waiting
from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.lifecycle.language import RUN_COMPONENTIZE
from pie_trio.application.run.native_host import make_native_module
from pie_trio.application.run.native_values import NativeTypes
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import (
    F32,
    STRING,
    U8,
    U32,
    Array,
    Codec,
    Enum,
    Flags,
    List,
    Option,
    Record,
    Tuple,
    Unit,
    Variant,
)
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from types import SimpleNamespace

    from pie_trio.application.wasm.linking import HostFunction

WIT_DOC = """
package test:test@0.1.0;
interface all {
  variant some-choice { first-case(u32), none }
  enum color { red, dark-blue }
  flags rights { read, write-all }
  record some-record { class: u32, max-size: u32 }
}
world test { import all; }
"""
CHOICE = Variant(first_case=U32, none=None)
COLOR = Enum("red", "dark-blue")
RIGHTS = Flags("read", "write-all")
INNER = Record(**{"class": U32, "max-size": U32})
TYPES: dict[str, Codec[Any]] = {
    "some-choice": CHOICE,
    "color": COLOR,
    "rights": RIGHTS,
    "some-record": INNER,
}

Classes = dict[str, list[str]]


def generate(wit: Path, world: str, target: Path) -> dict[str, Classes]:
    """Return the members of the classes in the modules that componentize-py writes."""
    command = [sys.executable, "-c", RUN_COMPONENTIZE, "-d", str(wit), "-w", world]
    subprocess.run([*command, "bindings", str(target)], check=True)
    found: dict[str, Classes] = {}
    for path in (target / "wit_world" / "imports").glob("*.py"):
        classes = found[path.stem] = {}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                members = classes[node.name] = []
                for child in node.body:
                    match child:
                        case (
                            ast.AnnAssign(target=ast.Name(id=name))
                            | ast.Assign(targets=[ast.Name(id=name)])
                        ):
                            members.append(name)
                        case _:
                            pass
    return found


def describe(classes: dict[str, Any]) -> Classes:
    return {
        name: list(found.__members__)
        if issubclass(found, enum.Enum)
        else [field.name for field in dataclasses.fields(found)]
        for name, found in classes.items()
    }


def test_the_classes_are_those_that_componentize_py_writes(tmp_path: Path) -> None:
    wit = Path(inferlet_py.__file__).parent / "wit"
    generated = generate(wit, "inferlet", tmp_path)
    for found in make_interfaces():
        classes = describe(NativeTypes(found.types).classes())
        assert classes == generated[found.short_name.replace("-", "_")], found.name


def test_all_kinds_of_classes_are_those_that_componentize_py_writes(
    tmp_path: Path,
) -> None:
    (tmp_path / "wit").mkdir()
    (tmp_path / "wit" / "all.wit").write_text(WIT_DOC)
    generated = generate(tmp_path / "wit", "test", tmp_path / "bindings")
    assert describe(NativeTypes(TYPES).classes()) == generated["all"]


def make_values(all_: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """Return codecs with a value on the SDK's side and the same on the host's."""
    inner = all_["SomeRecord"](3, 4)
    return [
        (U32, 7, 7),
        (STRING, "é", "é"),
        (F32, 0.5, 0.5),
        (List(List(U32)), [[1], []], [[1], []]),
        (Option(U32), None, None),
        (Option(STRING), "x", "x"),
        (Tuple(U32, STRING), (1, "x"), (1, "x")),
        (COLOR, all_["Color"].DARK_BLUE, "dark-blue"),
        (RIGHTS, all_["Rights"](0), frozenset()),
        (RIGHTS, all_["Rights"](3), frozenset({"read", "write-all"})),
        (RIGHTS, all_["Rights"].WRITE_ALL, frozenset({"write-all"})),
        (INNER, inner, (3, 4)),
        (List(INNER), [inner], [(3, 4)]),
        (CHOICE, all_["SomeChoice_FirstCase"](5), ("first-case", 5)),
        (CHOICE, all_["SomeChoice_None_"](), ("none", None)),
    ]


def test_values_cross_both_ways() -> None:
    types = NativeTypes(TYPES)
    for codec, on_sdk, on_host in make_values(types.classes()):
        assert types.from_sdk(codec)(on_sdk) == on_host
        assert types.to_sdk(codec)(on_host) == on_sdk


def test_numbers_become_arrays_and_bytes_stay_bytes() -> None:
    types = NativeTypes({})
    numbers = types.from_sdk(Array(U32, np.int32))([1, 2])
    assert (numbers.dtype, numbers.tolist()) == (np.int32, [1, 2])
    assert types.to_sdk(Array(F32))(np.array([0.5], np.float32)) == [0.5]
    data = types.from_sdk(Array(U8))(b"ab")
    assert (data.dtype, data.tobytes()) == (np.uint8, b"ab")
    assert types.to_sdk(Array(U8))(data) == b"ab"
    assert types.to_sdk(List(Array(U8)))([data]) == [b"ab"]


def test_single_precision_is_as_single_in_native_mode() -> None:
    assert NativeTypes({}).from_sdk(F32)(0.1) == float(np.float32(0.1))


def test_a_type_without_a_form_in_the_sdk_is_refused_when_it_is_declared() -> None:
    with pytest.raises(TypeError, match="no form"):
        NativeTypes({}).to_sdk(object())  # type: ignore[arg-type]


class FakeSession:
    """What a call of the native module needs."""

    def __init__(self) -> None:
        self.num_settled = 0

    def settle(self) -> None:
        self.num_settled += 1


async def call(
    session: FakeSession, name: str, function: HostFunction, *args: Any
) -> Any:
    """Call a function of a native module from another thread."""
    found = interface("test", {name: function})
    token = trio.lowlevel.current_trio_token()
    given: Any = session
    module: SimpleNamespace = make_native_module(found, given, token)
    return await trio.to_thread.run_sync(getattr(module, name), *args)


def double(_session: FakeSession, number: int) -> int:
    return 2 * number


def double_later(_session: FakeSession, number: int) -> Waiting:
    async def work() -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    return Waiting(work)


def refuse(_session: FakeSession) -> None:
    raise LimitError("no more")


async def test_calls_answer_at_once_or_after_a_wait() -> None:
    session = FakeSession()
    assert await call(session, "a", answering(double, U32, U32), 2) == 4
    assert await call(session, "a", fallible(double, U32, U32), 2) == 4
    assert session.num_settled == 0
    assert await call(session, "a", waiting(double_later, U32, U32), 2) == 4
    assert session.num_settled == 1


async def test_a_failed_call_raises_the_record_of_the_wit() -> None:
    with pytest.raises(Exception, match="no more") as caught:
        await call(FakeSession(), "a", fallible(refuse, Unit()))
    value: Any = vars(caught.value)["value"]
    assert (value.code.name, value.message) == ("LIMIT_EXCEEDED", "no more")
