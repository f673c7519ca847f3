"""The types that JSON can carry: dataclasses, TypedDicts, tuples; where in a value a fault is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlet_py._typed import MismatchError, SignatureError, fit, schema_of, to_plain


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        depth: How deep,
            in levels.
        mode: Which way.
    """

    depth: int
    mode: Literal["beam", "tree"] = "beam"
    weights: list[float] = field(default_factory=lambda: [1.0])


class Turn(TypedDict):
    role: str
    text: NotRequired[str]


@dataclass
class Task:
    search: Search
    turns: list[Turn]
    limits: tuple[int, float] | None = None


@dataclass
class Tree:
    children: list[Tree]


TASK = {"search": {"depth": 3}, "turns": [{"role": "user"}], "limits": [1, 2]}


def test_nested_members_become_what_the_types_say() -> None:
    assert fit(TASK, Task) == Task(Search(3), [{"role": "user"}], (1, 2.0))


@pytest.mark.parametrize(
    ("change", "path", "wanted"),
    [
        ({"search": {}}, ".search", "Search with depth"),
        ({"search": {"depth": "3"}}, ".search.depth", "int"),
        ({"turns": [{"role": "u", "text": 1}]}, ".turns[0].text", "str"),
        ({"limits": [1]}, ".limits", "list of 2 (int, float) or None"),
        ({"limits": [1, "x"]}, ".limits[1]", "float"),
        ({"turns": {}}, ".turns", "list of Turn"),
    ],
)
def test_a_fault_deep_inside_is_named_with_its_place(
    change: dict[str, Any], path: str, wanted: str
) -> None:
    with pytest.raises(MismatchError) as error:
        fit({**TASK, **change}, Task)
    assert error.value.path == path
    assert error.value.wanted == wanted


def test_the_schema_of_a_dataclass_has_its_descriptions() -> None:
    assert schema_of(Search) == {
        "type": "object",
        "properties": {
            "depth": {"type": "integer", "description": "How deep, in levels."},
            "mode": {"enum": ["beam", "tree"], "description": "Which way."},
            "weights": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["depth"],
        "additionalProperties": False,
    }
    assert schema_of(Turn)["required"] == ["role"]
    assert schema_of(Sequence[str]) == schema_of(list[str])
    assert schema_of(Annotated[int, "seconds"]) == {"type": "integer"}


@pytest.mark.parametrize("hint", [Tree, set[int], dict[int, str], bytes, list[bytes]])
def test_what_json_cannot_carry_is_refused(hint: Any) -> None:
    with pytest.raises(SignatureError):
        schema_of(hint)


TURNS = st.fixed_dictionaries({"role": st.text()}, optional={"text": st.text()})
SEARCHES = st.builds(
    Search,
    st.integers(),
    st.sampled_from(["beam", "tree"]),
    st.lists(st.floats(allow_nan=False)),
)


@given(
    st.builds(
        Task,
        SEARCHES,
        st.lists(TURNS),
        st.none() | st.tuples(st.integers(), st.floats(allow_nan=False)),
    )
)
def test_a_value_survives_the_way_through_json(task: Task) -> None:
    assert fit(json.loads(json.dumps(to_plain(task))), Task) == task
