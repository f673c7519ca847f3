"""Samplers that a program brings draw the same tokens as those of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from examples.custom_sampler.app import LOOP, draw, repetitions

if TYPE_CHECKING:
    from pie_trio.application.authoring.testing.pie import Pie
    from tests.examples.running import Examples

SAMPLERS = ("min_p", "dry", "mirostat")
STORY = "Once upon a time"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", [1, 2**64 - 1])
def test_the_program_draws_what_the_host_draws(
    examples: Examples, sampler: str, seed: int
) -> None:
    options: dict[str, Any] = {"sampler": sampler, "prompt": STORY, "seed": seed}
    own, host = examples.run_each(
        "custom_sampler",
        [{"on_host": h, "max_tokens": 120, **options} for h in (False, True)],
    )
    assert own.result == host.result
    assert len(own.result) > 200
    assert own.result.removeprefix(STORY) != examples.greedy(STORY, 120)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_draws_the_same_natively(
    tiny: Pie, examples: Examples, sampler: str, mode: Literal["wasm", "native"]
) -> None:
    run = tiny.run_sync("custom_sampler", sampler=sampler, max_tokens=40, mode=mode)
    host = examples.run("custom_sampler", sampler=sampler, max_tokens=40, on_host=True)
    assert run.result == host.result


def test_dry_ends_a_repetition_that_would_go_on(examples: Examples) -> None:
    plain = examples.run("custom_sampler", sampler="min_p").result
    dry = examples.run("custom_sampler", sampler="dry").result
    assert plain.startswith(LOOP)
    assert not dry.startswith(LOOP)
    assert dry.startswith("one two three")


def test_a_repetition_is_as_long_as_its_longest_match() -> None:
    assert repetitions([1, 2, 3, 1, 2]) == {3: 2}
    assert repetitions([7, 7, 7]) == {7: 2}
    assert repetitions([5, 2, 8, 1, 2, 9, 1, 2]) == {8: 1, 9: 2}
    assert repetitions([1, 2, 3]) == repetitions([]) == {}


def test_tokens_are_drawn_as_often_as_they_weigh() -> None:
    weights = {5: 0.6, 9: 0.3, 2: 0.1}
    drawn = [draw(weights, seed=7, position=n) for n in range(4000)]
    for token, weight in weights.items():
        assert drawn.count(token) / 4000 == pytest.approx(weight, abs=0.03)
