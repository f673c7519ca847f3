"""Components in files: their manifest survives, and what is none is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.authoring.manifest import Limits, Manifest
from pie_trio.application.authoring.packing import add_manifest, load_packed
from pie_trio.application.services import Grants
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = b"\0asm\x0d\x00\x01\x00"
OTHER_SECTION = b"\x00\x06\x04nameX"

MANIFESTS = st.builds(
    Manifest,
    name=st.text(max_size=200),
    description=st.text(max_size=200),
    grants=st.none() | st.builds(Grants, http=st.lists(st.text()).map(tuple)),
    limits=st.builds(Limits, pages=st.none() | st.integers(1, 99)),
    dependencies=st.lists(st.text()).map(tuple),
)


@given(MANIFESTS)
def test_a_manifest_survives_in_a_component(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    path = tmp_path_factory.mktemp("packed") / "program.wasm"
    path.write_bytes(add_manifest(EMPTY + OTHER_SECTION, manifest))
    found = load_packed(path)
    assert found.manifest == manifest
    assert found.name == (manifest.name or "program")


def test_a_component_without_a_manifest_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.wasm").write_bytes(EMPTY + OTHER_SECTION)
    found = load_packed(tmp_path / "other.wasm")
    assert (found.name, found.manifest) == ("other", Manifest())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a Wasm component"),
        (b"\0asm\x01\x00\x00\x00", "is not a Wasm component"),  # a core module
        (EMPTY + b"\x00\x7f", "is cut short"),
        (EMPTY + b"\x00\x0f\x0cpie:manifest{}", "of another version of Pie"),
    ],
)
def test_what_is_no_component_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "bad.wasm").write_bytes(data)
    with pytest.raises(ProgramError, match=message):
        load_packed(tmp_path / "bad.wasm")


def test_a_component_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"no program at .*x\.wasm"):
        load_packed(tmp_path / "x.wasm")
