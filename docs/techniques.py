"""Writes ``techniques.md``: what each example costs, with its technique and without, on pie-tiny.

``python docs/techniques.py`` after a change of an example; it takes a minute. A test says when the
numbers of lines are old. Steps depend a little on how busy the machine is, as batches do.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the examples and the harness of their tests

from examples.prefix_tree.app import PROMPTS  # noqa: E402 - needs the line above

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.examples.running import Examples, Use

PAGE = ROOT / "docs" / "techniques.md"
BOTH = ("pie-tiny", "draft")
ALL = {"cache": True, "overlap": True, "drop": True}
SAY = ["My name is Ivan.", "What is the capital of Italy?", "What is my name?"]
LONG = "Once upon a time, there was a curious child named Ivan. " * 8

INTRODUCTION = """# Techniques as programs

Techniques of the paper, and some more, each as a program in a folder of `examples/`, with a README that has the
commands and what they print. *Lines* are those of code, without comments, docstrings and blank lines; *paper* is the number of lines in
Rust that the paper gives. *Steps* are forwards of the default model, with all that share a batch counted once, *tokens* those
that it computed, *pages* the most KV pages in use at once; `with / without` the technique. Made by `python docs/techniques.py` on
pie-tiny.

| technique | lines | paper | what it does | steps | tokens | pages | without it |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Technique:
    """An example, and what it is compared with.

    Attributes:
        folder: Of the example.
        paper: Lines of code in the paper; None where it has none.
        does: In a few words.
        arguments: Of the run.
        without: What ``others`` are, in words; empty for no comparison.
        others: Arguments of the runs without the technique, which are added up.
        program: Of these runs; the example itself unless it says otherwise.
        models: That are served.
        is_second: The run is measured after another one of the same on the same server.
        has_tools: It uses those of ``examples/tool_server.py``.
    """

    folder: str
    paper: int | None
    does: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    without: str = ""
    others: Sequence[Mapping[str, Any]] = ()
    program: str = ""
    models: Sequence[str] = ("pie-tiny",)
    is_second: bool = False
    has_tools: bool = False


TECHNIQUES = [
    Technique("text_completion", 38, "continues a prompt"),
    Technique("prefix_caching", 45, "keeps a prompt on the server", {}, "first use", [{}], is_second=True),
    Technique("prefix_tree", None, "computes beginnings once", {}, "each prompt alone", [{"prompts": [p]} for p in PROMPTS]),
    Technique("modular_caching", 72, "puts parts of prompts together", {}, "first use", [{}], is_second=True),
    Technique("tree_of_thought", 198, "proposes, judges, goes on", {}, "one chain (wrong)", [{"branches": 1, "keep": 1}]),
    Technique("recursion_of_thought", 106, "splits until it is easy"),
    Technique("graph_of_thought", 87, "merges parts as they come"),
    Technique("skeleton_of_thought", 82, "writes all points at once"),
    Technique("constrained_decoding", 225, "JSON Schema, regex, EBNF"),
    Technique("beam_search", 98, "forks share pages", {"prompt": LONG}, "greedy", [{"prompt": LONG, "width": 1}]),
    Technique("watermarking", 43, "marks a text, and finds the mark", {}, "no mark", [{"strength": 0.0}]),
    Technique("output_validation", 52, "finds the likeliest matches"),
    Technique("speculative_decoding", 255, "n-gram guesses, same tokens", {}, "greedy", [{"num_drafted": 0}]),
    Technique("jacobi_decoding", 88, "corrects guesses at once, same tokens", {}, "greedy", [{"window": 1}]),
    Technique("attention_sink", 60, "constant memory for 2,000 tokens", {}, "everything stays", [{"window_pages": 999}]),
    Technique("windowed_attention", 60, "sees so many tokens", {}, "everything stays", [{"window": 999}]),
    Technique("hierarchical_attention", 42, "reads closely what matters"),
    Technique("draft_model_speculation", None, "a draft guesses, same tokens", {}, "greedy", [{"max_tokens": 64}], "text_completion", BOTH),
    Technique("best_of_n", None, "the model judges its answers", {}, "one answer", [{"count": 1}]),
    Technique("self_consistency", None, "the majority of answers", {}, "one answer", [{"count": 1}]),
    Technique("contrastive_decoding", None, "against a smaller model", models=BOTH),
    Technique("context_aware_decoding", None, "notes win over what was taught"),
    Technique("classifier_free_guidance", None, "follows the prompt more closely"),
    Technique("token_healing", None, "prompts may end within words"),
    Technique("memory_aware", None, "gives branches up when memory is short", {}, "24 pages", [{}], models=("pie-tiny", "small")),
    Technique("mcts", None, "searches by drafts to the end"),
    Technique("agent_react", 60, "tools between thoughts", {}, "all read again", [{"restart": True}], has_tools=True),
    Technique("agent_codeact", 62, "runs code that the model writes"),
    Technique("agent_swarm", 95, "agents with a tool each, in topics", has_tools=True),
    Technique("function_calling_agent", None, "documentation kept and dropped, calls overlap", ALL, "none of that", [{}], has_tools=True),
    Technique("async_tools", None, "answers while tools work", has_tools=True),
    Technique("reflexion", None, "learns from failures"),
    Technique("chat", None, "roles, streaming, a bounded history", {"say": SAY}),
    Technique("session", None, "gives its pages away between turns", {"say": SAY}),
    Technique("rag", None, "finds passages, computes each once", {}, "first use", [{}], is_second=True),
    Technique("custom_sampler", None, "min-p, DRY and Mirostat in the program", {}, "on the host", [{"on_host": True}]),
]  # fmt: skip


def count_lines(path: Path) -> int:
    """Return the lines of code of a module: no comments, docstrings and blank lines."""
    text = path.read_text()
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node):
            first = node.body[0]
            assert first.end_lineno is not None, "parsed from a text"
            documentation.update(range(first.lineno, first.end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#")
        for number, line in enumerate(text.splitlines(), 1)
        if number not in documentation
    )


def measure(examples: Examples, technique: Technique, tools_url: str) -> list[str]:
    """Return steps, tokens and pages, each with the technique and without."""
    name, program = technique.folder, technique.program or technique.folder
    hosts = [tools_url.removeprefix("http://")]
    common = {"tools": tools_url} if technique.has_tools else {}
    given = {**technique.arguments, **common}
    if technique.is_second:
        runs = examples.run_each(name, [given] * 2, allow_http=hosts)
        uses = [[runs[1].use], [runs[0].use]]
    else:
        first = examples.run(name, models=technique.models, allow_http=hosts, **given)
        uses = [[first.use]]
        if technique.others:
            models = (
                technique.models[::-1]
                if "small" in technique.models
                else technique.models
            )
            others = [
                examples.run(program, models=models, allow_http=hosts, **common, **o)
                for o in technique.others
            ]
            uses.append([run.use for run in others])
    return [
        " / ".join(f"{figure:,}" for figure in column)
        for column in zip(*map(_sum, uses), strict=True)
    ]


def _sum(uses: Sequence[Use]) -> tuple[int, int, int]:
    """Add runs up that come one after the other."""
    steps, tokens = (
        sum(getattr(u, name) for u in uses) for name in ("steps", "tokens")
    )
    return steps, tokens, max(use.peak_pages for use in uses)


def main() -> None:
    """Measure everything and write the page."""
    from tests.examples.conftest import open_examples
    from tests.examples.running import open_tools

    rows: list[str] = []
    with open_examples() as examples, open_tools() as tools:
        for technique in TECHNIQUES:
            lines = count_lines(ROOT / "examples" / technique.folder / "app.py")
            title = technique.folder.replace("_", " ")
            paper = "" if technique.paper is None else str(technique.paper)
            cells = [
                title,
                str(lines),
                paper,
                technique.does,
                *measure(examples, technique, tools.url),
                technique.without,
            ]
            rows.append(f"| {' | '.join(cells)} |\n")
    PAGE.write_text(INTRODUCTION + "".join(rows))


if __name__ == "__main__":
    main()
