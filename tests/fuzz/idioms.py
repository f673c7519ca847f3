"""Short runs of calls that go together, after which random ones find something to be about."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tests.fuzz.calls import Call, Code, functions, make_call, make_enum, make_record

if TYPE_CHECKING:
    from tests.fuzz.wit import Function

PAGES = list(range(6))


def function_named(name: str) -> Function:
    """Return a function by the names of its interface and itself."""
    (found,) = [function for function in functions() if str(function) == name]
    return found


def call(name: str, *arguments: Any, **more: Any) -> Call:
    """Return a call by the names of the WIT; what is not given is the simplest value."""
    function = function_named(name)
    params = [param for param, _ in function.params]
    by_name = dict(zip(params, map(_plain, arguments), strict=False))
    by_name |= {param.replace("_", "-"): _plain(value) for param, value in more.items()}
    return make_call(function, by_name)


def record(name: str, **fields: Any) -> list[Any]:
    """Return a record; what is not given is the simplest value."""
    given = {field.replace("_", "-"): _plain(value) for field, value in fields.items()}
    return make_record(name, given)


def _plain(value: Any) -> Any:
    """Return a value as the guest reads it: a list of values is written as one."""
    is_written = isinstance(value, list) and value and isinstance(value[0], Code)
    return value if is_written or not isinstance(value, list) else [Code.LIST, value]


def latest(opener: str) -> list[Any]:
    """Return the latest ticket that a function has opened."""
    return [Code.TICKET, 1, opener]


@cache
def idioms() -> tuple[tuple[Call, ...], ...]:
    """Return all of them; the first opens queues, pages and embeds."""
    greedy = record("sampler", top_p=1.0)
    wanted = record("output", rows=[0], sampler=greedy)
    tokens: dict[str, Any] = {"tokens": [65], "positions": [0], "pages": PAGES}
    request = record("forward-request", **tokens, outputs=[wanted])
    stream = record(
        "stream-request", **tokens, sampler=greedy, max_tokens=6, max_unread=2
    )
    spec = record(
        "processor-spec",
        grammar=record(
            "grammar", kind=make_enum("grammar-kind", "regex"), text="[ab]+"
        ),
        repetition_penalty=1.0,
    )
    text = [Code.VARIANT, "messaging", "Message_Text", ["hello"]]
    fetch = record("http-request-data", method="GET", url="http://web.test/")
    return (
        (
            call("queues.create-queue", 0, ""),
            call("queues.create-queue", 1, "fake"),
            call("allocate.alloc-kvpage", 0, PAGES),
            call("allocate.alloc-emb", 0, PAGES),
        ),
        (
            call("forward.forward-text", 0, request),
            call("forward.next-forward", latest("forward.forward-text"), [66], []),
        ),
        (
            call("decode.start-stream", 0, 0, stream),
            call("decode.read-stream", 0),
            call("decode.fork-stream", 0, 1, list(range(40, 46)), greedy),
        ),
        (
            call("processors.create-processor", 1, "", spec),
            call("tickets.finish", latest("processors.create-processor")),
            call("processors.accept", 1, list(b"ab")),
            call("processors.rollback", 1, 1),
        ),
        (
            call("input-text.embed-txt", 0, [65, 66], [0, 1], [0, 1]),
            call("forward.forward", 0, PAGES, [0, 1], PAGES, [0, 1]),
            call("output-text.get-next-dist", 0, 0, 2),
            call("output-text.project", 0, [0, 1], [wanted]),
        ),
        (
            call("exports.export-kvpage", 0, [0, 1], "a", persistent=True),
            call("exports.import-kvpage", 0, "a", [30, 31]),
            call("allocate.dealloc-kvpage", 0, [30, 31]),
        ),
        (
            call("topics.subscribe", 0, "t", hears_itself=True),
            call("topics.broadcast", "t", text),
            call("topics.receive-broadcast", 0),
        ),
        (
            call("children.spawn", 0, "child", "{}"),
            call("tickets.finish", latest("children.spawn")),
            call("children.send-child", 0, text),
            call("children.receive-child", 0),
        ),
        (
            call("http.open-http", 0, fetch),
            call("tickets.finish", latest("http.open-http")),
            call("http.read-body", 0),
        ),
        (
            call("exports.offer-prefix", 0, [0, 1], ["prefix/a", "prefix/b"]),
            call("exports.import-prefix", 0, ["prefix/a", "prefix/b"], [32, 33]),
            call("allocate.dealloc-kvpage", 0, [32]),
        ),
    )
