"""The WIT, the host and the SDK have the same functions and types.

What is dropped into the WIT, the host's table or the SDK's is compared without a change here.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import inferlet_py
from inferlet_py._host import INTERFACES, Host, bind_host
from pie_trio.application.host.interfaces import (
    FAILURE,
    make_interfaces,
    make_source_interface,
)
from pie_trio.application.run.native_values import NativeTypes, python_name
from pie_trio.application.wasm import values
from pie_trio.application.wasm.linking import ERROR
from pie_trio.application.wasm.values import (
    Array,
    Enum,
    Flags,
    List,
    Option,
    Record,
    Result,
    Scalar,
    String,
    Tuple,
    Unit,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferlet_py._binding import HostInterface as SdkInterface
    from pie_trio.application.wasm.linking import HostInterface

WIT = Path(inferlet_py.__file__).parent / "wit"
NOT_CALLS = {"types", "program", "compiler"}
SCALARS = {
    id(getattr(values, name)): name.lower()
    for name in ("BOOL", "U8", "U32", "U64", "F32", "F64")
}


@dataclass(frozen=True)
class WitInterface:
    """What an interface declares, as text without spaces.

    Attributes:
        functions: Parameters and result by name.
        types: Kind and members by name.
    """

    functions: dict[str, tuple[list[str], str | None]]
    types: dict[str, tuple[str, list[str]]]


def split(text: str) -> list[str]:
    """Split at the commas outside of brackets; drop spaces."""
    parts, depth = [""], 0
    for char in "".join(text.split()):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part]


@cache
def read_wit() -> dict[str, WitInterface]:
    found: dict[str, WitInterface] = {}
    texts = [re.sub(r"///?.*", "", p.read_text()) for p in sorted(WIT.glob("*.wit"))]
    aliases = dict(re.findall(r"^  type ([\w-]+) = ([^;]+);", "\n".join(texts), re.M))

    def resolve(kind: str) -> str:
        return re.sub(r"[\w-]+", lambda name: aliases.get(name[0], name[0]), kind)

    def resolve_field(field: str) -> str:
        name, colon, kind = field.lstrip("%").partition(":")
        return name + colon + resolve(kind)

    for name, body in itertools.chain.from_iterable(
        re.findall(r"^interface ([\w-]+) \{(.*?)\n\}", text, re.S | re.M)
        for text in texts
    ):
        functions: dict[str, tuple[list[str], str | None]] = {}
        for function, params, result in re.findall(
            r"^  %?([\w-]+): func\(([^)]*)\)(?: -> ([^;]+))?;", body, re.M
        ):
            kinds = [resolve(param.partition(":")[2]) for param in split(params)]
            functions[function] = (kinds, resolve("".join(result.split())) or None)
        assert len(functions) == body.count(": func("), f"{name}: not all were read"
        types = {
            type_name: (kind, [resolve_field(member) for member in split(members)])
            for kind, type_name, members in re.findall(
                r"^  (record|enum|variant|flags) ([\w-]+) \{(.*?)\n  \}",
                body,
                re.S | re.M,
            )
        }
        found[name] = WitInterface(functions, types)
    return found


def hosted() -> dict[str, HostInterface]:
    interfaces = [*make_interfaces(), make_source_interface(bool, bool)]
    return {interface.short_name: interface for interface in interfaces}


def calls() -> dict[str, WitInterface]:
    return {name: found for name, found in read_wit().items() if name not in NOT_CALLS}


def write_type(codec: Any, names: dict[int, str]) -> str:
    """Return a codec as the WIT writes its type."""
    if id(codec) in names:
        return names[id(codec)]
    match codec:
        case Unit():
            return "_"
        case Scalar():
            return SCALARS[id(codec)]
        case String():
            return "string"
        case Array(item=item) | List(item=item):
            return f"list<{write_type(item, names)}>"
        case Option(item=item):
            return f"option<{write_type(item, names)}>"
        case Tuple(items=items):
            return f"tuple<{','.join(write_type(item, names) for item in items)}>"
        case Result(ok=ok, error=error):
            good, bad = write_type(ok, names), write_type(error, names)
            return "result" if good == bad == "_" else f"result<{good},{bad}>"
        case _:
            raise AssertionError(f"{codec} is in no interface's types")


def write_members(codec: Any, names: dict[int, str]) -> tuple[str, list[str]]:
    """Return a named type as the WIT declares it."""
    match codec:
        case Record():
            fields = codec.codec_by_name.items()
            return "record", [f"{name}:{write_type(c, names)}" for name, c in fields]
        case Variant():
            return "variant", [
                name if payload is None else f"{name}({write_type(payload, names)})"
                for name, payload in codec.cases.items()
            ]
        case Enum():
            return "enum", list(codec.names)
        case Flags():
            return "flags", list(codec.names)
        case _:
            raise AssertionError(f"{codec} is no named type")


def names_of_types() -> dict[int, str]:
    shared = {
        id(ERROR): "error",
        id(ERROR.codec_by_name["code"]): "error-code",
        id(FAILURE): "failure",
    }
    declared = {
        id(codec): name
        for interface in hosted().values()
        for name, codec in interface.types.items()
    }
    return shared | declared


def test_the_host_answers_every_function_of_the_wit_and_no_other() -> None:
    names = names_of_types()
    written = {
        interface: {
            name: (
                [write_type(codec, names) for codec in function.params],
                None if function.result is None else write_type(function.result, names),
            )
            for name, function in found.functions.items()
        }
        for interface, found in hosted().items()
    }
    assert written == {name: found.functions for name, found in calls().items()}


def test_the_host_declares_every_type_of_the_wit() -> None:
    names = names_of_types()
    written = {
        interface: {
            name: write_members(codec, names) for name, codec in found.types.items()
        }
        for interface, found in hosted().items()
    }
    assert written == {name: found.types for name, found in calls().items()}
    shared = read_wit()["types"].types | read_wit()["program"].types
    assert shared == {
        "error": write_members(ERROR, names),
        "error-code": write_members(ERROR.codec_by_name["code"], names),
        "failure": write_members(FAILURE, names),
    }


def test_the_sdks_host_has_every_function_of_the_wit() -> None:
    found = {interface.name: set(interface.methods()) for interface in INTERFACES}
    assert found == {
        name: {python_name(function) for function in interface.functions}
        for name, interface in calls().items()
        if name != "source"
    }
    assert [interface.protocol for interface in INTERFACES] == list(Host.__bases__[:-1])


def test_no_two_functions_of_the_sdks_host_have_one_name() -> None:
    counts = Counter(name for found in INTERFACES for name in found.methods())
    assert [name for name, count in counts.items() if count > 1] == []


def test_what_the_sdk_says_never_fails_has_no_result_that_could() -> None:
    for interface in INTERFACES:
        marked = {
            name
            for name, method in interface.methods().items()
            if hasattr(method, "never_fails")
        }
        assert marked == {
            python_name(name)
            for name, (_, result) in calls()[interface.name].functions.items()
            if result is None or not result.startswith("result")
        }, interface.name


class EveryModule:
    """Stands in for a module of imports: has every function, and the native classes."""

    def __init__(self, name: str) -> None:
        vars(self).update(NativeTypes(hosted()[name].types).classes())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: None


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda found: found.name)
def test_the_sdks_methods_take_what_the_wit_or_their_adapters_take(
    interface: SdkInterface,
) -> None:
    adapted = interface.adapt(EveryModule(interface.name))
    assert set(adapted) <= set(interface.methods())
    counts = {
        python_name(name): len(params)
        for name, (params, _) in calls()[interface.name].functions.items()
    }
    for name, method in interface.methods().items():
        own = list(inspect.signature(method).parameters)[1:]
        if name in adapted:
            assert own == list(inspect.signature(adapted[name]).parameters), name
        else:
            assert len(own) == counts[name], name


def test_every_function_is_bound() -> None:
    host = bind_host({i.name: EveryModule(i.name) for i in INTERFACES}, ValueError)
    assert set(vars(host)) == {name for i in INTERFACES for name in i.methods()}


def test_everything_in_the_wit_is_documented() -> None:
    for path in WIT.glob("*.wit"):
        lines = path.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(
                r"^(  )?(interface |world |record |enum |variant |flags |%?[\w-]+: func\()",
                line,
            ):
                assert before.strip().startswith("///"), f"{path.name}: {line.strip()}"
