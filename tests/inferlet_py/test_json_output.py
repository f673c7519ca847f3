"""Values of types out of what a model writes."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlet_py import (
    Chat,
    Context,
    SignatureError,
    WrongJsonError,
    WrongValueError,
    generate_json,
    json_schema,
    read_json,
)
from tests.inferlet_py.scripted_host import ScriptedHost, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Kind(enum.Enum):
    CAT = "cat"
    DOG = "dog"


@dataclass
class Pet:
    name: str
    kind: Kind = Kind.CAT


@dataclass
class Person:
    """Somebody.

    Attributes:
        name: What others say.
    """

    name: str
    age: int
    heights: list[float] = field(default_factory=list)
    pets: list[Pet] = field(default_factory=list)
    note: str | None = None


class Point(TypedDict):
    x: int
    y: NotRequired[int]


@dataclass
class Tree:
    children: list[Tree]


class Pieces:
    """Pieces of a text as they come, and how many were taken."""

    def __init__(self, *pieces: str) -> None:
        self.left = list(pieces)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


def read(text: str, kind: Any) -> Any:
    async def program() -> Any:
        return await read_json(Pieces(*text), kind).value()

    return run(ScriptedHost(), program)


def test_a_value_is_of_the_type_that_was_asked_for() -> None:
    text = '{"name": "Anna", "age": 3, "heights": [1, 1.5], "pets": [{"name": "Leo", "kind": "dog"}]}'
    assert read(text, Person) == Person("Anna", 3, [1.0, 1.5], [Pet("Leo", Kind.DOG)])
    assert read('{"x": 1}', Point) == {"x": 1}
    assert read('[{"x": 1, "y": 2}]', list[Point]) == [{"x": 1, "y": 2}]
    assert read('"a"', Literal["a", "b"]) == "a"
    assert read("12", int) == 12
    assert read("null", int | None) is None


@given(st.lists(st.builds(Pet, st.text(), st.sampled_from(Kind)), max_size=3))
def test_a_value_survives_the_way_there_and_back(pets: list[Pet]) -> None:
    text = json.dumps([{"name": pet.name, "kind": pet.kind.value} for pet in pets])
    assert read(text, list[Pet]) == pets


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('{"name": "A"}', Person, 'expected Person with age, got {"name": "A"}'),
        ('{"name": "A", "age": "3"}', Person, 'at .age: expected int, got "3"'),
        ('{"name": 1, "age": true}', Person, "at .name: expected str, got 1"),
        (
            '{"name": "A", "age": 1, "pets": [{"name": "B", "kind": "cow"}]}',
            Person,
            "at .pets[0].kind: expected one of 'cat', 'dog', got \"cow\"",
        ),
        (
            '{"x": 1, "z": 2}',
            Point,
            'expected a field of Point (x, y), got "z"',
        ),
        ("[1, true]", list[int], "at [1]: expected int, got true"),
        ('{"a": [{"x": "y"}]}', dict[str, list[Point]], "at .a[0].x: expected int"),
    ],
)
def test_a_wrong_value_says_where_and_what(text: str, kind: Any, message: str) -> None:
    with pytest.raises(WrongValueError) as caught:
        read(text, kind)
    assert message in str(caught.value)
    assert caught.value.value == json.loads(text)


@pytest.mark.parametrize("text", ["", "I do not know.", '{"name": "A', "[1]", "{1}"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(WrongJsonError):
        read(text, Person)


def test_what_stands_around_the_value_is_left_out() -> None:
    text = 'Here it is:\n```json\n{"x": 1}\n```\nDone {}.'
    assert read(text, Point) == {"x": 1}
    assert read("Some: [1, 2] and more", list[int]) == [1, 2]


def test_the_schema_is_that_of_the_type() -> None:
    schema = json_schema(Person)
    assert schema["required"] == ["name", "age"]
    assert schema["properties"]["name"] == {
        "type": "string",
        "description": "What others say.",
    }
    kinds = schema["properties"]["pets"]["items"]["properties"]["kind"]
    assert kinds == {"enum": ["cat", "dog"]}
    assert json_schema(Point)["required"] == ["x"]


def test_a_type_that_contains_itself_is_refused() -> None:
    with pytest.raises(SignatureError, match="Tree contains itself"):
        json_schema(Tree)


def test_partial_values_come_with_the_text() -> None:
    pieces = ['{"name": "An', 'na", "age": 3', "1, ", '"note": null}', " rest"]

    async def program() -> list[Any]:
        output = read_json(Pieces(*pieces), Person)
        seen = [json.loads(json.dumps(partial)) async for partial in output]
        return [seen, await output.value()]

    seen, value = run(ScriptedHost(), program)
    assert seen == [
        {"name": "An"},
        {"name": "Anna"},
        {"name": "Anna", "age": 31},
        {"name": "Anna", "age": 31, "note": None},
    ]
    assert value == Person("Anna", 31)


def test_a_generation_ends_with_its_value() -> None:
    host = ScriptedHost('{"x": 1} and a lot more that nobody wants', chunk_size=2)

    async def program() -> Any:
        async with Context() as ctx:
            await ctx.fill("Point: ")
            value = await generate_json(ctx, Point, max_tokens=99).value()
            return [value, ctx.text()]

    assert run(host, program) == [{"x": 1}, 'Point: {"x": 1}']


def test_a_reply_is_read_to_its_end_so_that_it_becomes_a_message() -> None:
    host = ScriptedHost('```\n{"x": 1}\n```')

    async def program() -> Any:
        async with Chat() as chat:
            value = await read_json(chat.user("Point?").reply(), Point).value()
            return [value, chat.messages[-1]["content"]]

    assert run(host, program) == [{"x": 1}, '```\n{"x": 1}\n```']
