"""Measure a draft model: how much of what the target says greedily it foresees."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from training.corpus import FAMILIES
from training.evaluate import held_out
from training.export import load_model
from training.generate import Generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.model import Llama


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a draft is worth on some texts.

    Attributes:
        foreseen: Share of the target's tokens that the draft would have said too.
        tokens_per_step: Tokens for each forward pass of the target.
    """

    foreseen: float
    tokens_per_step: float


def num_steps(hits: Sequence[bool], num_drafted: int) -> int:
    """Return how many passes of the target a text takes.

    Args:
        hits: For each token of the text, whether the draft foresees it.
        num_drafted: Tokens that the draft proposes for each pass. The target keeps
            those up to the first wrong one, and adds a token of its own.
    """
    steps = position = 0
    while position < len(hits):
        drafted = hits[position : position + num_drafted]
        num_kept = drafted.index(False) if False in drafted else len(drafted)
        position += num_kept + 1
        steps += 1
    return steps


@torch.inference_mode()
def foresee(draft: Llama, prompt: Sequence[int], text: Sequence[int]) -> list[bool]:
    """Return for each token of ``text`` whether the draft says it too, greedily.

    It reads the target's text, as in speculation it goes on from kept tokens alone.
    """
    token_ids = torch.tensor([[*prompt, *text]])
    hidden = draft(token_ids[:, :-1], torch.float32)[0, len(prompt) - 1 :]
    hits = draft.logits(hidden).argmax(-1) == token_ids[0, len(prompt) :]
    return [bool(hit) for hit in hits]


def measure(
    target: Llama, draft: Llama, tokenizer: Tokenizer, *, count: int, num_drafted: int
) -> dict[str, Acceptance]:
    """Return the acceptance on ``count`` held-out prompts of each family."""
    generator = Generator(target, tokenizer)
    table: dict[str, Acceptance] = {}
    for name, family in FAMILIES.items():
        documents = held_out(family, count, seed=2)
        prompts = [document.turns[0].prompt or "Once upon" for document in documents]
        texts = generator.complete(prompts)
        hits = [
            foresee(draft, tokenizer.encode(p).ids, tokenizer.encode(t).ids)
            for p, t in zip(prompts, texts, strict=True)
            if t
        ]
        num_tokens = sum(map(len, hits))
        table[name] = Acceptance(
            sum(map(sum, hits)) / num_tokens,
            num_tokens / sum(num_steps(text_hits, num_drafted) for text_hits in hits),
        )
    return table


def main() -> None:
    """Measure from the command line; a Markdown table goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="exported folder")
    parser.add_argument("draft", type=Path, help="exported folder, the same tokenizer")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--num-drafted", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.target / "tokenizer.json"))
    table = measure(
        load_model(args.target),
        load_model(args.draft),
        tokenizer,
        count=args.count,
        num_drafted=args.num_drafted,
    )
    lines = ["| family | tokens foreseen | tokens a step |", "| --- | --- | --- |"]
    for name, row in table.items():
        lines.append(
            f"| {name} | {100 * row.foreseen:.1f} % | {row.tokens_per_step:.2f} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
