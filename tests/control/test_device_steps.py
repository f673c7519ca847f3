"""Steps in their order, with engines that overlap them and engines that do not."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from pie_trio.control.device_steps import DeviceSteps
from pie_trio.control.device_thread import open_device_thread
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, SamplerSpec
from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.control.engines import TIME_LIMIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.engine_api import BatchResult

PROMPT = [256, *b"ab"]
LAST_ROW = OutputSpec(np.zeros(1, np.int32), SamplerSpec())


class OverlappingEngine(FakeEngine):
    """Computes a step when it is collected, as a device may that has not come to it before.

    Attributes:
        log: What was asked for, in order.
        can_all_follow: As :meth:`can_follow` says for whatever outputs.
    """

    is_pipelined = True

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self.log: list[str] = []
        self.can_all_follow = True
        self._asked: deque[Batch] = deque()
        self._last: list[int] = []

    def submit(self, batch: Batch) -> None:
        self.log.append("submit")
        if self._failures.get(len(self.batches) + len(self._asked)) is REFUSED:
            self.batches.append(batch)
            raise REFUSED
        self._asked.append(batch)

    def collect(self) -> BatchResult:
        self.log.append("collect")
        batch = self._asked.popleft()
        forwards = list(batch.forwards)
        for index, forward in enumerate(forwards):
            if forward.follows >= 0:
                token = self._last[forward.follows]
                forwards[index] = request_of([token], forward.kv_len - 1)
        result = self.execute(Batch(tuple(forwards)))
        self._last = tokens_of(result)
        return result

    def can_follow(self, outputs: Sequence[OutputSpec]) -> bool:
        return self.can_all_follow


REFUSED = EngineError("refused at once")


def request_of(
    tokens: list[int], start: int, *, follows: int = -1, page: int = 0
) -> ForwardRequest:
    end = start + len(tokens)
    output = OutputSpec(np.array([len(tokens) - 1], np.int32), SamplerSpec())
    return ForwardRequest(
        np.array(tokens, np.int32),
        np.arange(start, end, dtype=np.int32),
        np.array([page], np.int32),
        end,
        outputs=(output,),
        follows=follows,
    )


def tokens_of(result: BatchResult) -> list[int]:
    found: list[int] = []
    for forward in result.forwards:
        assert not isinstance(forward, EngineError)
        found += forward[0].token_ids.tolist()
    return found


@pytest.mark.parametrize("engine", [FakeEngine(), OverlappingEngine()])
def test_a_forward_follows_the_step_before_with_any_engine(engine: FakeEngine) -> None:
    steps = DeviceSteps(engine)
    started = [steps.start(Batch((request_of(PROMPT, 0),)))]
    found = list[int]()
    for at in range(3, 8):
        started.append(steps.start(Batch((request_of([0], at, follows=0),))))
        found += tokens_of(started.pop(0).finish())
    found += tokens_of(started.pop().finish())
    assert found == fake_continuation(PROMPT, 6)


def test_steps_that_overlap_are_asked_for_before_the_one_before_is_collected() -> None:
    engine = OverlappingEngine()
    steps = DeviceSteps(engine)
    first = steps.start(Batch((request_of(PROMPT, 0),)))
    second = steps.start(Batch((request_of([0], 3, follows=0),)))
    first.finish()
    second.finish()
    assert engine.log == ["submit", "submit", "collect", "collect"]


def test_what_the_device_does_not_know_is_entered_once_the_step_before_has_ended() -> (
    None
):
    engine = OverlappingEngine()
    engine.can_all_follow = False
    steps = DeviceSteps(engine)
    first = steps.start(Batch((request_of(PROMPT, 0),)))
    found = list[int]()
    collector = threading.Thread(target=lambda: found.extend(tokens_of(first.finish())))
    collector.start()
    second = steps.start(Batch((request_of([0], 3, follows=0),)))
    found += tokens_of(second.finish())
    collector.join()
    assert found == fake_continuation(PROMPT, 2)
    assert engine.log == ["submit", "collect", "submit", "collect"]


@pytest.mark.parametrize(
    "engine",
    [
        FakeEngine(failures={0: REFUSED}),
        OverlappingEngine(failures={0: REFUSED}),
        FakeEngine(broken_token_ids=[256]),
    ],
)
def test_others_run_beside_what_follows_a_failure(engine: FakeEngine) -> None:
    steps = DeviceSteps(engine)
    first = steps.start(Batch((request_of(PROMPT, 0),)))
    both = Batch((request_of([0], 3, follows=0), request_of([97], 0, page=1)))
    second = steps.start(both)
    try:
        failed = first.finish().forwards[0]
    except EngineError as error:
        failed = error
    assert isinstance(failed, EngineError)
    assert tokens_of(second.finish())[1:] == fake_continuation([97], 1)


def test_the_first_step_has_nothing_to_follow() -> None:
    steps = DeviceSteps(FakeEngine())
    started = steps.start(Batch((request_of([0], 0, follows=0),)))
    with pytest.raises(EngineError, match="this is the first one"):
        started.finish()


@pytest.mark.parametrize("kind", [FakeEngine, OverlappingEngine])
async def test_two_steps_are_on_their_way_at_once_and_run_in_order(
    kind: type[FakeEngine],
) -> None:
    found: dict[int, list[int]] = {}

    async def step(number: int, batch: Batch, begun: trio.Event) -> None:
        begun.set()
        found[number] = tokens_of(await device.execute(batch, is_here=False))

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(kind()) as device:
            for number in range(0, 12, 2):
                at = number + 2 if number else 0
                tokens = [found[number - 1][0]] if number else PROMPT
                first = Batch((request_of(tokens, at),))
                second = Batch((request_of([0], at + len(tokens), follows=0),))
                async with trio.open_nursery() as nursery:
                    begun = trio.Event()
                    nursery.start_soon(step, number, first, begun)
                    await begun.wait()
                    nursery.start_soon(step, number + 1, second, begun)
    flat = [token for number in sorted(found) for token in found[number]]
    assert flat == fake_continuation(PROMPT, len(flat))
