"""What processors do to logits, against loops written from the definitions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.engine_api import ProcessorSpec
from pie_trio.errors import BadArgumentError
from pie_trio.inference.processors.changes import change_logits, pack_mask
from pie_trio.inference.processors.processor import Processor, check_spec
from tests.inference.processors.test_history import naive_lengths

VOCAB_SIZE = 37

TOKENS = st.lists(st.integers(0, 6), max_size=12).map(tuple)
SPECS = st.builds(
    ProcessorSpec,
    bias=st.dictionaries(
        st.integers(0, VOCAB_SIZE - 1), st.sampled_from([-math.inf, -2.0, 3.5])
    ).map(lambda biases: tuple(biases.items())),
    allowed_tokens=st.one_of(
        st.none(), st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1).map(tuple)
    ),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    dry_base=st.sampled_from([1.0, 1.75]),
    dry_allowed_length=st.integers(1, 3),
    dry_breakers=st.sampled_from([(), (2,)]),
    window=st.sampled_from([0, 4]),
    prompt=TOKENS,
)


def make(spec: ProcessorSpec) -> Processor:
    check_spec(spec, VOCAB_SIZE)
    return Processor(spec, vocab_size=VOCAB_SIZE, matcher=None)


def changed(
    logits: list[float], spec: ProcessorSpec, history: list[int]
) -> list[float]:
    """Change one row as ProcessorSpec documents it."""
    row = list(logits)
    for token, value in spec.bias:
        row[token] += value
    latest = history[-spec.window :] if spec.window else history
    for token, count in Counter(latest).items():
        if row[token] > 0:
            row[token] /= spec.repetition_penalty
        else:
            row[token] *= spec.repetition_penalty
        row[token] -= spec.presence_penalty
        row[token] -= count * spec.frequency_penalty
    if spec.dry_multiplier:
        for token, length in naive_lengths(latest, set(spec.dry_breakers)).items():
            if length >= spec.dry_allowed_length:
                growth = spec.dry_base ** (length - spec.dry_allowed_length)
                row[token] -= spec.dry_multiplier * growth
    for token in range(VOCAB_SIZE):
        if spec.allowed_tokens is not None and token not in spec.allowed_tokens:
            row[token] = -math.inf
    return row


@given(st.lists(st.tuples(SPECS, TOKENS), min_size=1, max_size=4), st.integers(0, 99))
def test_rows_are_changed_as_the_definitions_say(
    rows: list[tuple[ProcessorSpec, tuple[int, ...]]], seed: int
) -> None:
    drawn = np.random.default_rng(seed).normal(size=(len(rows), VOCAB_SIZE)) * 4
    logits = drawn.astype(np.float32)
    before = logits.tolist()
    processors: list[Processor] = []
    expected: list[list[float]] = []
    for (spec, tokens), row in zip(rows, before, strict=True):
        processors.append(make(spec))
        is_allowed = spec.allowed_tokens or range(VOCAB_SIZE)
        taken = [t for t in tokens if t in is_allowed]
        assert processors[-1].accept(taken) == len(taken)
        expected.append(changed(row, spec, [*spec.prompt, *taken]))
    change_logits(logits, processors, None)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@given(TOKENS, TOKENS, SPECS)
def test_what_was_taken_back_leaves_no_trace(
    kept: tuple[int, ...], lost: tuple[int, ...], spec: ProcessorSpec
) -> None:
    once, twice = make(spec), make(spec)
    once.accept(kept)
    twice.accept(kept)
    twice.roll_back(twice.accept(lost))
    logits = np.random.default_rng(5).normal(size=(2, VOCAB_SIZE)).astype(np.float32)
    logits[1] = logits[0]
    change_logits(logits, [once, twice], None)
    assert (logits[0] == logits[1]).all()


def test_a_long_loop_costs_much_but_not_everything() -> None:
    """Or a grammar that allows nothing else would be left without a token."""
    processor = make(ProcessorSpec(dry_multiplier=1.0, dry_base=4.0))
    processor.accept([3] * 1000)
    logits = np.zeros((1, VOCAB_SIZE), np.float32)
    change_logits(logits, [processor], None)
    assert logits[0, 3] == pytest.approx(-1e9)


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_a_mask_has_a_bit_a_token_lowest_first(is_allowed: list[bool]) -> None:
    words = pack_mask(np.array(is_allowed)).tolist()
    assert len(words) == (len(is_allowed) + 31) // 32
    bits = [bool(words[i // 32] >> (i % 32) & 1) for i in range(32 * len(words))]
    assert bits == is_allowed + [False] * (len(bits) - len(is_allowed))


BAD_SPECS = {
    "repetition_penalty": ProcessorSpec(repetition_penalty=0.0),
    "presence_penalty": ProcessorSpec(presence_penalty=math.nan),
    "frequency_penalty": ProcessorSpec(frequency_penalty=math.inf),
    "dry_multiplier": ProcessorSpec(dry_multiplier=-1.0),
    "dry_base": ProcessorSpec(dry_base=0.5),
    "dry_allowed_length": ProcessorSpec(dry_allowed_length=0),
    "window": ProcessorSpec(window=-1),
    "mirostat_tau": ProcessorSpec(mirostat_tau=-1.0),
    "mirostat_eta": ProcessorSpec(mirostat_eta=math.nan),
    "a bias is a finite": ProcessorSpec(bias=((1, math.inf),)),
    "a bias is .* -inf": ProcessorSpec(bias=((1, math.nan),)),
    "two biases": ProcessorSpec(bias=((1, 1.0), (1, 2.0))),
    "biased token .* 37": ProcessorSpec(bias=((37, 1.0),)),
    "no token is allowed": ProcessorSpec(allowed_tokens=()),
    "allowed token": ProcessorSpec(allowed_tokens=(0, 37)),
    "breaking token": ProcessorSpec(dry_breakers=(-1,)),
    "prompt token": ProcessorSpec(prompt=(40,)),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_an_impossible_spec_is_refused_by_name(case: str) -> None:
    with pytest.raises(BadArgumentError, match=case):
        check_spec(BAD_SPECS[case], VOCAB_SIZE)
