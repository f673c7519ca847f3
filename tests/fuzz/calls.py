"""From bytes to calls: whatever the bytes are, they stand for a call that the WIT allows.

Fewer and smaller bytes stand for simpler calls, so that whoever shrinks bytes shrinks calls. What
the types alone leave too improbable (two lists of one length, a name that something has) comes from
the names of parameters and fields; an interface that is new is covered by its types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.run.native_values import python_name
from tests.fuzz.wit import Function, Named, Type, read_wit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


# What arguments look like on their way to the guest: numbers, texts and None are themselves, and
# everything else is a list that begins with one of these.
class Code(IntEnum):
    """How an argument goes on."""

    LIST = 0
    TUPLE = 1
    BYTES = 2
    RECORD = 3
    ENUM = 4
    FLAGS = 5
    VARIANT = 6
    TICKET = 7
    SOON = 8


EDGES_U32 = (
    8,
    9,
    16,
    63,
    64,
    255,
    256,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
EDGES_U64 = (8, 9, 1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
USUAL_FLOATS: Sequence[float] = (0.0, 1.0, 0.5)
EDGES_FLOAT: Sequence[float] = (
    0.5,
    0.9,
    2.0,
    1e-6,
    -1.0,
    100.0,
    3e38,
    1e-45,
    math.inf,
    -math.inf,
    math.nan,
)
TEXTS = (
    *("", "a", "b", "hello world", "fake", "x" * 300, "\N{SNOWMAN} \N{GRINNING FACE}"),
    *("\0", "{", "{}", "[]", "null", '{"a": 1}', "..", "a/b", "ann/a", "9" * 400),
)
TEXTS_BY_NAME: dict[str, Sequence[str]] = {
    "model": ("", "fake", "nothing"),
    "adapter": ("", "", "", "lora", "nothing"),
    "program": ("", "child", "nothing"),
    "arguments": ("{}", '{"plan": "x"}', "null", "{", "[1]", '{"\\ud800": 1e999}'),
    "topic": ("t", "u", "bob/t", ""),
    "key": ("k", "l", "m/n", "", "k" * 2000),
    "query": ("limits", "pages", "tickets", "trace", "usage", "commands", "batcher", "explain"),
    "url": ("http://web.test/", "http://web.test/c", "http://web.test/a?b#c", "http://other.test/", "ftp://x", "http://[", "web.test"),
    "method": ("GET", "GET", "GET", "POST", "HEAD", "get", "GET\r\n"),
    "content-type": ("text/plain", "a\r\nb", ""),
    "messages": ('[{"role": "user", "content": "x"}]', "[]", "{"),
    "text": ("a", "a b c", '{"type": "object"}', "[ab]+", 'root ::= "a" root | "b"', "start: /a+/", "(" * 50, ""),
    "fields": ("", "{}", '{"a": [1]}', "[", '"x"'),
    "traits": ("allocate", "forward", "nothing"),
    "name": ("a", "b", "ann/a", "", "c" * 300),
    "prefix": ("", "a", "k"),
}  # fmt: skip
GRAMMARS = (
    ('{"type": "object"}', '{"type": "string", "maxLength": 3}', "true", "{"),
    ("[ab]+", "a|b", "(a", ".*"),
    ("start: /a+/", 'start: "a" start | "b"', "start: ("),
    ('root ::= "a" root | "b"', "root ::= [a-z]+", "root ::= x"),
)
"""Of each kind, in the order of the WIT's enum."""
OPENERS = {
    "take-forward": ("forward-text", "forward", "project", "get-next-dist", "next-forward"),
    "take-tokens": ("forward-text", "next-forward", "forward"),
    "next-forward": ("forward-text", "next-forward"),
    "take-chunk": ("read-stream",),
    "take-value": ("store-get",),
    "take-flag": ("store-delete", "store-exists"),
    "take-keys": ("store-list-keys",),
    "take-response": ("http-request", "http-get", "http-post"),
    "take-head": ("open-http",),
    "take-body": ("read-body",),
    "take-outcome": ("wait-child",),
    "take-child-message": ("receive-child",),
}  # fmt: skip
"""Whose tickets functions take; of others, those of their interface are tried."""
COUNTS = frozenset({"count", "k", "max-tokens", "max-unread", "limit", "target-offset"})
"""Numbers of which 0 is hardly ever right."""
TOKENS = frozenset({"tokens", "stop-tokens", "prompt", "breakers", "allowed-tokens"})
NUM_HANDLES = 6
SECONDS = (0.0, 0.0, 0.001, 0.002, 0.01)


class Choices:
    """Takes decisions from bytes; where there are no more, each is the simplest one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    def byte(self) -> int:
        """Return the next byte."""
        at = self._next
        self._next += 1
        return self._data[at] if at < len(self._data) else 0

    def below(self, count: int) -> int:
        """Return a number below ``count``, of two bytes if it takes as many."""
        number = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return number % count

    def seldom(self, times: int) -> bool:
        """Say yes, in so many of 256 cases."""
        return self.byte() >= 256 - times

    def of(self, choices: Sequence[Any]) -> Any:
        """Return one of them."""
        return choices[self.below(len(choices))]


@dataclass(frozen=True)
class Call:
    """A call, ready to be sent to a guest.

    Attributes:
        arguments: As they are written for the guest.
        waits_for: A ticket, if the call would wait for it: the guest makes it only where that is
            ready. None where the guest makes the call whatever happens.
    """

    function: Function
    arguments: list[Any]
    waits_for: Any = None

    def for_guest(self) -> list[Any]:
        """Return what the guest reads."""
        function = self.function
        names = [function.interface.replace("-", "_"), python_name(function.name)]
        opened = str(function) if function.opens_ticket else ""
        takes = takes_ticket(function) and function.name != "next-forward"
        return [*names, self.arguments, self.waits_for, opened, takes]

    def __str__(self) -> str:
        written = ", ".join(map(_show, self.arguments))
        note = "" if self.waits_for is None else "  # if it is ready"
        return f"{self.function}({written}){note}"


def _show(value: Any) -> str:
    if not isinstance(value, list):
        shown = repr(value)
        return (
            shown if len(shown) < 200 else f"{shown[:20]}...  # {len(value)} characters"
        )
    kind, *rest = value
    match kind:
        case Code.LIST | Code.TUPLE:
            return f"[{', '.join(map(_show, rest[0]))}]"
        case Code.BYTES:
            return repr(bytes.fromhex(rest[0]))
        case Code.RECORD:
            return f"{rest[1]}({', '.join(map(_show, rest[2]))})"
        case Code.ENUM | Code.FLAGS:
            return f"{rest[1]}({rest[2]})"
        case Code.VARIANT:
            payload = ", ".join(map(_show, rest[2]))
            return f"{rest[1]}({payload})"
        case Code.TICKET:
            return f"<ticket {-rest[0]} of {rest[1] or 'all'}>"
        case _:
            return f"now + {rest[0]}"


@cache
def waiting_functions() -> frozenset[str]:
    """Return what may suspend the guest, as ``interface.function``."""
    return frozenset(
        f"{interface.short_name}.{name}"
        for interface in make_interfaces()
        for name, function in interface.functions.items()
        if function.waits
    )


@cache
def functions() -> tuple[Function, ...]:
    """Return all functions, by interface."""
    return tuple(sorted(read_wit().functions, key=lambda found: found.interface))


def takes_ticket(function: Function) -> bool:
    """Say whether a function takes a ticket."""
    return any(kind.name == "ticket" for _, kind in function.params)


@cache
def _openers(taker: str) -> tuple[str, ...]:
    """Return what may open the tickets that a function takes, as far as one can know."""
    interface, _, name = taker.partition(".")
    opening = [function for function in functions() if function.opens_ticket]
    named = [str(found) for found in opening if found.name in OPENERS.get(name, ())]
    own = [str(found) for found in opening if found.interface == interface]
    return tuple(named or own or map(str, opening))


def read_calls(pieces: Sequence[bytes]) -> Iterator[Call]:
    """Return a call for each piece of bytes."""
    for piece in pieces:
        choices = Choices(piece)
        yield _make_call(choices.of(functions()), choices)


def _make_call(function: Function, choices: Choices) -> Call:
    names = [name for name, _ in function.params]
    arguments = [_make(kind, name, choices) for name, kind in function.params]
    _make_consistent(names, arguments, choices)
    for index, (_, kind) in enumerate(function.params):
        if kind.name == "ticket" and not choices.seldom(48):
            arguments[index] = [Code.TICKET, 1, choices.of(_openers(str(function)))]
    waits_for: Any = None
    if str(function) in waiting_functions() and not choices.seldom(2):
        if "ticket" in names:
            waits_for = arguments[names.index("ticket")]
        elif "deadline" in names:  # no guest waits for ever by chance
            arguments[names.index("deadline")] = [Code.SOON, choices.of(SECONDS)]
    return Call(function, arguments, waits_for)


def make_call(function: Function, given: dict[str, Any]) -> Call:
    """Return a call with some arguments by name; the others are the simplest values."""
    simplest = Choices(b"")
    return Call(
        function,
        [
            given[name] if name in given else _make(kind, name, simplest)
            for name, kind in function.params
        ],
    )


def make_record(name: str, given: dict[str, Any]) -> list[Any]:
    """Return a record with some fields by name; the others are the simplest values."""
    named = read_wit().types[name]
    assert given.keys() <= dict(named.members).keys(), f"{name} has not all of {given}"
    coded: list[Any] = _named(named, Choices(b""))
    for index, (field, _) in enumerate(named.members):
        if field in given:
            coded[3][index] = given[field]
    return coded


def make_enum(name: str, case: str) -> list[Any]:
    """Return a case of an enum."""
    named = read_wit().types[name]
    cases = [found for found, _ in named.members]
    coded: list[Any] = _named(named, Choices(b""))
    return [*coded[:3], cases.index(case)]


def _make(kind: Type, name: str, choices: Choices) -> Any:
    match kind.name:
        case "bool":
            return bool(choices.byte() & 1)
        case "u8" | "u32" | "u64":
            return _number(kind.name, name, choices)
        case "f32" | "f64":
            number = choices.byte()
            floats = USUAL_FLOATS if number < 216 else EDGES_FLOAT
            return floats[number % len(floats)]
        case "string":
            pool = TEXTS_BY_NAME.get(name, TEXTS)
            return choices.of(TEXTS if choices.seldom(24) else pool)
        case "option":
            return None if choices.byte() < 128 else _make(kind.items[0], name, choices)
        case "list":
            return _list(kind.items[0], name, choices)
        case "tuple":
            return [Code.TUPLE, [_make(item, name, choices) for item in kind.items]]
        case "ticket":
            return [Code.TICKET, 1 + choices.byte() % 8, ""]
        case _:
            return _named(read_wit().types[kind.name], choices)


def _number(kind: str, name: str, choices: Choices) -> int:
    number = choices.byte()
    if kind == "u8" or name in TOKENS:
        return number
    if number < 224:
        return number % 3 + 1 if name in COUNTS else number % 8
    edges = EDGES_U64 if kind == "u64" else EDGES_U32
    return edges[number % len(edges)]


def _list(item: Type, name: str, choices: Choices) -> Any:
    length = choices.byte()
    length = 0 if length < 64 else length % 7 if length < 252 else 40
    if item.name == "bool" and length < 7:
        length = 4  # the tokens of a page
    if item.name == "u8":
        return [Code.BYTES, bytes(choices.byte() for _ in range(length)).hex()]
    found = [_make(item, name, choices) for _ in range(length)]
    named = read_wit().types.get(item.name)
    if named is not None and named.kind == "type" and not choices.seldom(24):
        # Handles: as many in a row as there are, for the first of them.
        start = found[0] if found else 0
        if isinstance(start, int) and start < NUM_HANDLES:
            found = list(range(start, start + length))
    return [Code.LIST, found]


def _named(named: Named, choices: Choices) -> Any:
    module = named.interface.replace("-", "_")
    name = "".join(part.capitalize() for part in named.name.split("-"))
    match named.kind:
        case "type":
            (_, target), *_ = named.members
            assert target is not None, "a name stands for a type"
            if target.name == "u32" and not choices.seldom(16):
                # A handle, that there may be; the first ones are there from the start.
                number = choices.byte()
                number %= 1 if number < 144 else 2 if number < 192 else NUM_HANDLES
                return number + (named.name == "processor")  # 0 stands for none
            return _make(target, named.name, choices)
        case "record":
            names = [member for member, _ in named.members]
            fields = [_make(kind, n, choices) for n, kind in named.members if kind]
            _make_consistent(names, fields, choices)
            return [Code.RECORD, module, name, fields]
        case "enum":
            return [Code.ENUM, module, name, choices.below(len(named.members))]
        case "flags":
            return [Code.FLAGS, module, name, choices.below(1 << len(named.members))]
        case _:
            case, payload = choices.of(named.members)
            case_name = "".join(part.capitalize() for part in case.split("-"))
            made = [] if payload is None else [_make(payload, case, choices)]
            return [Code.VARIANT, module, f"{name}_{case_name}", made]


def _plain_output(row: int) -> list[Any]:
    """Return the output that most forwards have: one greedy token."""
    greedy = [Code.RECORD, "forward", "Sampler", [0.0, 0, 1.0, 0.0, 0, 0, None]]
    extras = [Code.FLAGS, "forward", "Extras", 0]
    return [Code.RECORD, "forward", "Output", [[Code.LIST, [row]], greedy, 0, extras]]


def _make_consistent(names: Sequence[str], values: list[Any], choices: Choices) -> None:
    """Let most values go together that would otherwise hardly ever."""
    if choices.seldom(24):
        return
    at = {name: index for index, name in enumerate(names)}
    if "tokens" in at and "positions" in at:
        tokens = values[at["tokens"]][1] or [1]
        start = choices.below(12)
        values[at["tokens"]] = [Code.LIST, tokens]
        values[at["positions"]] = [Code.LIST, list(range(start, start + len(tokens)))]
        if "start" in at:
            values[at["start"]] = start
        if "pages" in at:
            values[at["pages"]] = [
                Code.LIST,
                list(range((start + len(tokens) + 19) // 4)),
            ]
        if "embeds" in at:
            values[at["embeds"]] = [Code.LIST, list(range(len(tokens)))]
        if "mask" in at and not choices.seldom(48):
            values[at["mask"]] = None
    if "outputs" in at and choices.seldom(192):
        last = len(values[at["tokens"]][1]) - 1 if "tokens" in at else 0
        values[at["outputs"]] = [Code.LIST, [_plain_output(last)]]
    if "kind" in at and "text" in at:
        kind = values[at["kind"]][3]
        values[at["text"]] = choices.of(GRAMMARS[kind % len(GRAMMARS)])
    if "rows" in at:
        values[at["rows"]] = [Code.LIST, [0]]
    for name in ("processor", "temperature"):
        if name in at and "sampler" not in at and len(names) > 1 and name != names[0]:
            values[at[name]] = choices.byte() % 2 if choices.seldom(96) else 0
    if "top-p" in at:
        values[at["top-p"]] = 1.0
    for name in ("bias", "dry", "mirostat", "filters", "allowed"):
        if name in at and len(names) > 1 and choices.byte() < 192:
            is_list = (
                isinstance(values[at[name]], list) and values[at[name]][0] == Code.LIST
            )
            values[at[name]] = [Code.LIST, []] if is_list else None
    if "seconds-to-live" in at and choices.seldom(160):
        values[at["seconds-to-live"]] = None
