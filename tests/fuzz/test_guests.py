"""Random guests on a real server; ``nox -s fuzz`` has far more of them."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from inferlet_py._host import INTERFACES
from pie_trio.application.host import forward, in_flight
from pie_trio.application.host.session import Session
from pie_trio.control.pages import PagePool
from pie_trio.control.processors import Processor
from pie_trio.control.tickets import TicketTable
from pie_trio.control.topics import Mailbox
from tests.fuzz.calls import Call, functions, read_calls
from tests.fuzz.idioms import function_named, idioms
from tests.fuzz.serving import FIRST_IDIOM, Plan, run_guests, shrink
from tests.fuzz.wit import parse_type

if TYPE_CHECKING:
    from pie_trio.application.wasm.runtime import LinkedComponent
    from tests.fuzz.watch import Watch

Watched = tuple["LinkedComponent", "Watch"]

SHARE_OF_TIME = 0.55
EXAMPLES_OF_SEED = 50
FEW_EXAMPLES = 8
# Long ones: with the few bytes that hypothesis prefers, most calls are the same simple ones.
PIECES = st.lists(st.binary(min_size=12, max_size=24), min_size=30, max_size=90)
PLANS = st.builds(
    Plan,
    pieces=PIECES.map(tuple),
    rounds=st.integers(1, 6),
    end=st.sampled_from(["return"] * 7 + ["raise", "exit", "recurse", "spin"]),
    stop_at=st.sampled_from([0] * 5 + [1, 20, 90]),
    drop_at=st.sampled_from([0] * 5 + [1, 30, 130]),
    is_native=st.sampled_from([False] * 7 + [True]),
    has_grants=st.sampled_from([True, True, True, False]),
)
GROUPS = st.lists(PLANS, min_size=2, max_size=4).map(lambda plans: [plans])
UNSUPPORTED = {
    "input-image.embed-img",
    "input-image.num-embs-needed",
    "tokenize.render-chat",
}
"""What a fake engine has no trait for, and no template."""


def check_examples(watched: Watched, number: int, max_examples: int) -> None:
    """Run random guests; those that fail are shrunk, and shown with their calls."""
    language, watch = watched

    @seed(number)
    @settings(
        max_examples=max_examples,
        database=None,
        phases=[Phase.generate],  # `shrink` knows what calls are, and is faster
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(GROUPS)
    def check(groups: list[list[Plan]]) -> None:
        try:
            run_guests(language, watch, groups)
        except AssertionError as error:
            raise shrink(language, watch, groups, error) from error

    check()


def test_whatever_guests_call_nothing_is_left_and_the_server_goes_on(
    watched: Watched,
    fuzz_seconds: float,
    first_seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, watch = watched
    if not fuzz_seconds:
        check_examples(watched, 0, FEW_EXAMPLES)
        assert watch.num_calls > 1000
        return
    end = time.monotonic() + SHARE_OF_TIME * fuzz_seconds
    for number in itertools.count(first_seed):
        check_examples(watched, number, EXAMPLES_OF_SEED)
        if time.monotonic() > end:
            break
    with capsys.disabled():
        print(f"\n{watch.num_calls} calls, seeds {first_seed} to {number}")  # noqa: T201
    succeeded = {name for name, code in watch.counts if code == "ok"}
    never = {str(function) for function in functions()} - succeeded
    assert never <= UNSUPPORTED, f"no random call of these ever succeeds: {never}"


def test_every_function_of_the_wit_can_come(watched: Watched) -> None:
    named = {
        str(call.function) for call in read_calls([bytes([n]) for n in range(256)])
    }
    assert named == {str(function) for function in functions()}
    assert {name.partition(".")[0] for name in named} == {i.name for i in INTERFACES}


def test_types_are_read_as_they_are_written() -> None:
    for text in ("u32", "result<option<ticket>, error>", "list<tuple<u32, f32>>"):
        assert str(parse_type(text)) == text


def idiom(number: int) -> bytes:
    """Return the piece that stands for an idiom."""
    return FIRST_IDIOM + bytes([number])


def find_failure(watched: Watched, *pieces: bytes) -> str:
    """Return what is said of a guest that makes these calls."""
    with pytest.raises(AssertionError) as failure:
        run_guests(*watched, [[Plan(pieces)]])
    return str(failure.value)


@pytest.fixture
def planted_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward fails with a KeyError where the guest has given pages back."""
    check_room = in_flight.check_room

    def fail_seldom(session: Any, *args: Any) -> None:
        check_room(session, *args)
        if len(session.pages["fake"]) < 3:
            raise KeyError("planted")

    monkeypatch.setattr(forward, "check_room", fail_seldom)


@pytest.mark.usefixtures("planted_bug")
@pytest.mark.parametrize("is_native", [False, True])
def test_an_error_that_is_not_declared_is_found_and_the_calls_are_shown(
    watched: Watched, is_native: bool
) -> None:
    give_back = Call(function_named("allocate.dealloc-kvpage"), [0, [0, [0, 1, 2, 3]]])
    plan = Plan((idiom(1),), rounds=1, is_native=is_native)
    run_guests(*watched, [[plan]])  # it gives nothing back
    later = Plan((idiom(1),), is_native=is_native, then=(give_back, *idioms()[1]))
    with pytest.raises(AssertionError) as failure:
        run_guests(*watched, [[later]])
    assert "planted" in str(failure.value)
    assert "allocate.dealloc-kvpage(0, [0, 1, 2, 3])" in str(failure.value)


@pytest.mark.slow
@pytest.mark.usefixtures("planted_bug")
def test_random_guests_find_a_bug_and_are_shrunk_to_what_it_takes(
    watched: Watched,
) -> None:
    with pytest.raises(AssertionError) as failure:
        check_examples(watched, 0, 200)
    shown = str(failure.value)
    assert "planted" in shown
    assert shown.count("\n  ") < 30, shown


def keep_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel_all = TicketTable.cancel_all

    def keep_one(table: TicketTable) -> None:
        cancel_all(table)
        if table._next > 1:
            table.open()

    monkeypatch.setattr(TicketTable, "cancel_all", keep_one)


def keep_page(monkeypatch: pytest.MonkeyPatch) -> None:
    release, released = PagePool.release, list[int]()

    def keep_one(pool: PagePool, page: int) -> None:
        released.append(page)
        if len(released) != 2:  # one that no command has written
            release(pool, page)

    monkeypatch.setattr(PagePool, "release", keep_one)


def keep_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processor, "drop", lambda _: None)


def keep_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mailbox, "close", lambda _: None)


def log_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_queue(*_: Any) -> None:
        logging.getLogger("pie_trio").error("planted")

    monkeypatch.setattr(Session, "settle", open_queue)


PLANTED = {
    "len(session.tickets) == 0": (1, keep_ticket),
    "check_all_free": (1, keep_page),
    "processor": (3, keep_processor),
    "subscription": (6, keep_subscription),
    "planted": (1, log_error),
}


@pytest.mark.parametrize("wanted", PLANTED)
def test_what_is_left_is_found(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    number, plant = PLANTED[wanted]
    plant(monkeypatch)
    assert wanted in find_failure(watched, idiom(number))
