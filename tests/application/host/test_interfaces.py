"""The WIT, the host and the SDK have the same functions."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import inferlet_py
from inferlet_py._host import Host
from pie_trio.application.host.interfaces import (
    API_VERSION,
    make_interfaces,
    make_source_interface,
)
from pie_trio.application.run.native_host import NativeHost

WIT = Path(inferlet_py.__file__).parent / "wit"
NOT_CALLS = {"types", "program", "compiler"}


def read_wit() -> dict[str, list[str]]:
    """Return the functions of each interface."""
    found: dict[str, list[str]] = {}
    for path in WIT.glob("*.wit"):
        text = re.sub(r"///.*", "", path.read_text())
        for name, body in re.findall(
            r"interface ([\w-]+) \{(.*?)\n\}", text, re.DOTALL
        ):
            functions = re.findall(r"^  ([\w-]+): func\(", body, re.MULTILINE)
            found[name] = functions
    return {name: calls for name, calls in found.items() if name not in NOT_CALLS}


def test_the_host_answers_every_function_of_the_wit_and_no_other() -> None:
    interfaces = [*make_interfaces(), make_source_interface(bool, bool)]
    hosted = {
        interface.name.removeprefix("pie:inferlet/").removesuffix(
            f"@{API_VERSION}"
        ): set(interface.functions)
        for interface in interfaces
    }
    assert hosted == {name: set(functions) for name, functions in read_wit().items()}


@pytest.mark.parametrize("host", [Host, NativeHost])
def test_the_sdks_host_has_every_function_of_the_wit(host: type) -> None:
    functions = {
        name.replace("-", "_")
        for interface, names in read_wit().items()
        if interface != "source"
        for name in names
    }
    public = {name for name in vars(host) if not name.startswith("_")}
    assert public == functions


def test_everything_in_the_wit_is_documented() -> None:
    for path in WIT.glob("*.wit"):
        lines = path.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(
                r"^(  )?(interface |world |record |enum |[\w-]+: func\()", line
            ):
                assert before.strip().startswith("///"), f"{path.name}: {line.strip()}"
