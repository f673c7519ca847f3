"""Measure a checkpoint on held-out documents: greedy, tools really executed."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from training.agents import Episode, run_react, run_tool_calls
from training.batches import encode
from training.corpus import (
    FAMILIES,
    Document,
    Split,
    Turn,
    draw,
    recall,
    records,
    stories,
    stream,
)
from training.corpus import code as code_family
from training.corpus.documents import chat, message
from training.corpus.stream import Family
from training.corpus.tasks import Task, make_task
from training.export import load_model
from training.generate import Generator
from training.quantize import Int8Llama

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from training.model import Llama

logger = logging.getLogger(__name__)

Scores = dict[str, float]
SPAN_TOKENS = 64
_CARD_START, _CARD_END = "<!-- evaluation -->", "<!-- /evaluation -->"


def share(results: Iterable[bool]) -> float:
    """Return the share of true results in per cent, with one decimal."""
    values = list(results)
    return round(100 * sum(values) / max(1, len(values)), 1)


def held_out(
    family: Family, count: int, *, seed: int = 0, kind: str | None = None
) -> list[Document]:
    """Return ``count`` held-out documents of a family, of one kind if it is named."""
    rng = Random(f"evaluate {seed}")
    documents: list[Document] = []
    while len(documents) < count:
        document = draw(family, rng, Split.HELD_OUT)
        if kind in (None, document.kind):
            documents.append(document)
    return documents


def exact(generator: Generator, documents: list[Document]) -> list[bool]:
    """Return for each document whether its last turn comes out word for word."""
    prompts = [
        document.text.removesuffix(document.turns[-1].completion)
        for document in documents
    ]
    # Some more than the longest answer: a wrong one may go on for ever.
    encoded = (generator.tokenizer.encode(document.answer) for document in documents)
    max_tokens = 4 + max(len(encoding.ids) for encoding in encoded)
    answers = generator.complete(prompts, max_tokens=max_tokens)
    return [a == d.answer for a, d in zip(answers, documents, strict=True)]


def score_stories(generator: Generator, count: int) -> Scores:
    """Score words, endings and variety of stories, half of them asked for in a chat."""
    known = {
        word
        for document in islice(stream(7), 20_000)
        for word in stories.words(document.text)
    }
    documents = held_out(FAMILIES["stories"], count)
    prompts = []
    for document in documents:
        if document.kind == "plain":
            prompts.append(" ".join(document.text.split(" ")[:12]))
        else:
            prompts.append(document.turns[0].prompt)
    texts = generator.complete(prompts, max_tokens=250)
    return {
        "whole words": share(known.issuperset(stories.words(t)) for t in texts),
        "ends with a sentence": share(t.rstrip()[-1:] in (".", "!") for t in texts),
        "distinct": share(
            [True] * len(set(texts)) + [False] * (count - len(set(texts)))
        ),
    }


def tasks_for(count: int) -> list[Task]:
    """Return held-out tasks whose results come from the real tools."""
    rng = Random("evaluate tasks")
    tasks: list[Task] = []
    while len(tasks) < count:
        task = make_task(rng, is_real=True)
        # The families draw the line with their own names: keep what both hold out.
        is_held_out = all(
            Document(family, "", (), task.entities).is_in(Split.HELD_OUT)
            for family in ("react", "tool_calls")
        )
        if is_held_out and task.kind != "missing":
            tasks.append(task)
    return tasks


def score_episodes(episodes: list[Episode]) -> Scores:
    """Score syntax, calls and answers of an agent."""
    return {
        "valid syntax": share(episode.is_valid for episode in episodes),
        "right calls": share(episode.has_right_calls for episode in episodes),
        "right answer": share(episode.has_right_answer for episode in episodes),
    }


def score_code(generator: Generator, count: int) -> Scores:
    """Score code acts: the code is run, and its output goes back to the model."""
    documents = held_out(FAMILIES["code"], count)
    prompts = [document.turns[0].prompt for document in documents]
    completions = generator.complete(prompts)
    outputs = [_output_of(text) for text in completions]
    continued = [
        f"{prompt}{text}<|im_end|>\n{message('tool', output or '')}<|im_start|>assistant\n"
        for prompt, text, output in zip(prompts, completions, outputs, strict=True)
    ]
    answers = generator.complete(continued)
    pairs = list(zip(answers, documents, strict=True))
    return {
        "code runs": share(output is not None for output in outputs),
        "right answer": share(answer == document.answer for answer, document in pairs),
    }


def _output_of(text: str) -> str | None:
    source = code_family.extract_code(text)
    if source is None:
        return None
    try:
        return code_family.run(source)
    except Exception:  # noqa: BLE001  # the model's code may raise anything
        return None


def score_records(generator: Generator, count: int) -> Scores:
    """Score JSON: valid for the schema, and right where extracted.

    "Constrained" is the same under the grammar of the schema: of what ends within the limit of
    tokens, how much is valid.
    """
    scores: Scores = {}
    for kind in ("extract", "invent"):
        documents = held_out(FAMILIES["records"], count, kind=kind)
        prompts = [d.turns[0].prompt for d in documents]
        pairs = list(zip(generator.complete(prompts), documents, strict=True))
        scores[f"{kind} valid"] = share(_is_valid_record(t, d) for t, d in pairs)
        if kind == "extract":
            scores["extract exact"] = share(t == d.answer for t, d in pairs)
        schemas = [records.strict_schema(records.types_in(p)) for p in prompts]
        texts = generator.complete_schemas(prompts, schemas)
        ended = [(t, d) for t, d in zip(texts, documents, strict=True) if t is not None]
        scores[f"{kind} constrained ends"] = share(t is not None for t in texts)
        scores[f"{kind} constrained valid"] = share(
            _is_valid_record(t, d) for t, d in ended
        )
        if kind == "extract":
            scores["extract constrained exact"] = share(t == d.answer for t, d in ended)
    return scores


def _is_valid_record(text: str, document: Document) -> bool:
    try:
        record = json.loads(text)
    except ValueError:
        return False
    return records.matches(record, records.types_in(document.turns[0].prompt))


def score_copies(generator: Generator, tokenizer: Tokenizer, count: int) -> Scores:
    """Score copying of exactly ``SPAN_TOKENS`` tokens, and of shorter and longer ones."""
    scores: Scores = {}
    for num_tokens in (16, SPAN_TOKENS, 256):
        rng = Random(f"evaluate copies {num_tokens}")
        spans: list[str] = []
        while len(spans) < count:
            ids = tokenizer.encode(recall.random_span(rng, num_tokens)).ids
            span = tokenizer.decode(ids[:num_tokens])
            if len(tokenizer.encode(span).ids) == num_tokens:
                spans.append(span)
        questions = [
            chat(("user", recall.copy_question(span)), ("assistant", span))
            for span in spans
        ]
        documents = [
            Document("recall", "copy", turns, (span,))
            for turns, span in zip(questions, spans, strict=True)
        ]
        scores[f"copy {num_tokens} tokens"] = share(exact(generator, documents))
    return scores


def score_retrieval(generator: Generator, count: int) -> Scores:
    """Score finding one fact among few and among many."""
    scores: Scores = {}
    for num_facts in (10, 30, 80):
        rng = Random(f"evaluate facts {num_facts}")
        make = partial(recall.retrieve_document, num_facts=num_facts)
        family = Family(make, recall.check, 1.0)
        documents = [draw(family, rng, Split.HELD_OUT) for _ in range(count)]
        scores[f"one of {num_facts} facts"] = share(exact(generator, documents))
    return scores


def score_kinds(generator: Generator, name: str, count: int) -> Scores:
    """Score the last turn, word for word, of each kind of a family."""
    found: dict[str, list[Document]] = {}
    for document in held_out(FAMILIES[name], 4 * count):
        found.setdefault(document.kind, []).append(document)
    scores: Scores = {}
    for kind, documents in sorted(found.items()):
        if kind in ("outline", "expand"):
            scores[f"{kind} well-formed"] = _well_formed(generator, documents[:count])
        else:
            scores[f"{kind} exact"] = share(exact(generator, documents[:count]))
    return scores


def _well_formed(generator: Generator, documents: list[Document]) -> float:
    prompts = [document.turns[-1].prompt for document in documents]
    made = (
        replace(document, turns=(Turn(document.turns[-1].prompt, answer),))
        for document, answer in zip(documents, generator.complete(prompts), strict=True)
    )
    return share(FAMILIES["plans"].check(document) for document in made)


@torch.inference_mode()
def perplexities(
    model: Llama, tokenizer: Tokenizer, count: int
) -> Mapping[str, Scores]:
    """Return perplexity of each family, over all tokens and over completions alone."""
    table: dict[str, Scores] = {}
    for name, family in FAMILIES.items():
        losses, weights = [], []
        for document in held_out(family, count, seed=1):
            ids, document_weights = encode(tokenizer, document)
            hidden = model(torch.tensor([ids[:-1]]), torch.float32)
            logits = model.logits(hidden[0])
            losses.append(
                functional.cross_entropy(
                    logits, torch.tensor(ids[1:]), reduction="none"
                )
            )
            weights.append(torch.tensor(document_weights[1:]) >= 1)
        loss, is_completion = torch.cat(losses), torch.cat(weights)
        table[name] = {
            "perplexity": round(math.exp(loss.mean()), 2),
            "perplexity of completions": round(math.exp(loss[is_completion].mean()), 3),
        }
    return table


def score_tasks(model: Llama, tokenizer: Tokenizer, count: int) -> dict[str, Scores]:
    """Return the scores of what the model does, by group, each from about ``count`` documents."""
    generator = Generator(model, tokenizer)
    tasks = tasks_for(count)
    groups: Mapping[str, Callable[[], Scores]] = {
        "stories": lambda: score_stories(generator, count),
        "react": lambda: score_episodes(run_react(generator, tasks)),
        "tool_calls": lambda: score_episodes(run_tool_calls(generator, tasks)),
        "code": lambda: score_code(generator, count),
        "records": lambda: score_records(generator, count),
        "recall": lambda: (
            score_copies(generator, tokenizer, count)
            | score_retrieval(generator, count)
        ),
        "labels": lambda: score_kinds(generator, "labels", count),
        "plans": lambda: score_kinds(generator, "plans", count),
        "talk": lambda: score_kinds(generator, "talk", count),
    }
    table: dict[str, Scores] = {}
    for name, score in groups.items():
        table[name] = score()
        logger.info("%s: %s", name, table[name])
    return table


def evaluate(model: Llama, tokenizer: Tokenizer, count: int) -> dict[str, Scores]:
    """Return every score by group, each from about ``count`` held-out documents."""
    table = score_tasks(model, tokenizer, count)
    for name, scores in perplexities(model, tokenizer, count).items():
        table[name] |= scores
    return table


def as_markdown(table: Mapping[str, Scores]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| family | figure | value |", "| --- | --- | --- |"]
    for name, scores in table.items():
        for figure, value in scores.items():
            unit = "" if figure.startswith("perplexity") else " %"
            lines.append(f"| {name} | {figure} | {value}{unit} |")
    return "\n".join(lines)


def update_card(card: Path, table: Mapping[str, Scores]) -> None:
    """Put the scores between the evaluation markers of a model card."""
    head, _, rest = card.read_text().partition(_CARD_START)
    _, _, tail = rest.partition(_CARD_END)
    body = f"{_CARD_START}\n{as_markdown(table)}\n{_CARD_END}"
    card.write_text(head + body + tail)


def main() -> None:
    """Evaluate from the command line; the table goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="exported folder or checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="needed for a checkpoint")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quantize", choices=["int8"], help="evaluate it in 8 bits, as `pie` has it"
    )
    parser.add_argument("--card", type=Path, help="model card to update")
    parser.add_argument("--json", type=Path, help="write the scores here too")
    args = parser.parse_args()
    if args.quantize is not None and args.card is not None:
        parser.error("a card is of the model as it is: leave out --card or --quantize")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(
        str(args.tokenizer or args.model / "tokenizer.json")
    )
    model = load_model(args.model)
    if args.quantize is not None:
        model = Int8Llama(model)
    table = evaluate(model, tokenizer, args.count)
    sys.stdout.write(as_markdown(table) + "\n")
    if args.card is not None:
        update_card(args.card, table)
    if args.json is not None:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
