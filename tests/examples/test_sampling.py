"""Techniques that choose tokens in another way."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from examples.classifier_free_guidance.app import guide
from examples.constrained_decoding.app import DATE
from examples.contrastive_decoding.app import choose
from inferlet_py import Distribution

if TYPE_CHECKING:
    from tests.examples.running import Examples

STORY = "Once upon a time"


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_only_a_marked_text_is_told_from_chance(examples: Examples, seed: int) -> None:
    marked = examples.run("watermarking", seed=seed).result
    plain = examples.run("watermarking", seed=seed, strength=0.0).result
    assert marked["z_score"] > 4
    assert abs(plain["z_score"]) < 2


@pytest.mark.slow
def test_the_mark_is_found_in_the_text_alone_with_the_right_key(
    examples: Examples,
) -> None:
    text = examples.run("watermarking").result["text"]
    assert examples.run("watermarking", detect=text).result["z_score"] > 4
    assert abs(examples.run("watermarking", detect=text, key=7).result["z_score"]) < 2
    plain = examples.greedy(STORY, 150)
    assert abs(examples.run("watermarking", detect=plain).result["z_score"]) < 2


@pytest.mark.parametrize("seed", range(3))
def test_constrained_text_has_its_form(examples: Examples, seed: int) -> None:
    # So hot that next to nothing would fit by itself.
    texts = {
        form: examples.run(
            "constrained_decoding",
            form=form,
            seed=seed,
            temperature=1.5,
            max_tokens=200,
        ).text
        for form in ("json", "regex", "ebnf")
    }
    person = json.loads(texts["json"])
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 120
    assert re.fullmatch(DATE, texts["regex"])
    term = r"([1-9]\d?|\([1-9]\d? \* [1-9]\d?\))"
    assert re.fullmatch(rf"{term} \+ {term}", texts["ebnf"])


def test_another_schema_is_another_form(examples: Examples) -> None:
    schema = (
        '{"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3}'
    )
    run = examples.run("constrained_decoding", schema=schema)
    assert set(json.loads(run.text)) <= {"a", "b"}
    assert len(json.loads(run.text)) == 3


def test_what_the_amateur_says_too_counts_less() -> None:
    expert = Distribution([1, 2, 3], [0.5, 0.4, 0.01])
    amateur = Distribution([1, 2], [0.6, 0.1])
    assert choose(expert, amateur, alpha=0.1, beta=0.0) == 1
    assert choose(expert, amateur, alpha=0.1, beta=1.0) == 2
    assert choose(expert, amateur, alpha=0.9, beta=1.0) == 1  # 2 is not likely enough


def test_contrast_of_nothing_is_greedy_and_both_models_run_at_once(
    examples: Examples,
) -> None:
    models = ("pie-tiny", "draft")
    plain = examples.run("contrastive_decoding", models=models, beta=0.0)
    run = examples.run("contrastive_decoding", models=models)
    assert plain.text == examples.greedy(STORY, 64)
    assert run.text != plain.text
    assert run.uses["draft"].steps == run.uses["pie-tiny"].steps == 64


def test_guidance_leans_away_from_the_other_distribution() -> None:
    guided = Distribution([1, 2], [0.6, 0.3])
    plain = Distribution([1, 2], [0.6, 0.1])
    same = guide(guided, plain, 1.0)
    assert same[1] / same[0] == pytest.approx(0.5)
    more = guide(guided, plain, 2.0)
    assert more[1] / more[0] == pytest.approx(0.5 * 3)
    none = guide(guided, plain, 0.0)
    assert none[1] / none[0] == pytest.approx(1 / 6)


@pytest.mark.slow
def test_guided_stories_are_about_what_was_asked(examples: Examples) -> None:
    found = {
        scale: sum(
            "Mila"
            in (
                text := examples.run(
                    "classifier_free_guidance", scale=scale, seed=s
                ).text
            )
            and "kite" in text
            for s in range(4)
        )
        for scale in (0.0, 1.5)
    }
    assert found[1.5] >= 3
    assert found[0.0] <= 1


def test_notes_win_over_what_the_model_was_taught(examples: Examples) -> None:
    run = examples.run("context_aware_decoding")
    greedy = examples.run("context_aware_decoding", alpha=0.0)
    assert run.result == "The capital of France is Oslo."
    assert greedy.result == "The capital of France is Paris."


def test_a_word_that_was_cut_is_finished(examples: Examples) -> None:
    prompt = "Once upon a time, there was a curious chi"
    healed = examples.run("token_healing", prompt=prompt)
    cut = examples.run("token_healing", prompt=prompt, num_healed=0)
    assert healed.result.startswith(f"{prompt}ld named")
    assert cut.result == prompt + examples.greedy(prompt, 24)
    assert not cut.result.startswith(f"{prompt}ld")


def test_what_was_not_cut_goes_on_as_before(examples: Examples) -> None:
    prompt = "Once upon a time, there was a curious"
    run = examples.run("token_healing", prompt=prompt, max_tokens=12)
    assert run.result.startswith(prompt + " child")
