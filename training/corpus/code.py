"""Code acts: a question, a few lines of Python, what they print, an answer."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import Document, chat

if TYPE_CHECKING:
    from random import Random

INSTRUCTION = "Answer with Python code."

_BLOCK = re.compile(r"```python\n(.*?)\n```", re.DOTALL)
# No imports, no files: what a snippet of the corpus needs and nothing else.
_BUILTINS = {
    function.__name__: function
    for function in (abs, len, list, max, min, print, range, round, sorted, str, sum)
}


def run(source: str) -> str:
    """Return what ``source`` prints. Only for code of the corpus and of its model.

    Raises:
        Exception: Whatever the code raises.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(source, {"__builtins__": _BUILTINS | {"reversed": reversed}})
    return output.getvalue().strip()


def extract_code(text: str) -> str | None:
    """Return the code block of a completion."""
    match = _BLOCK.search(text)
    return match[1] if match else None


def _number_task(rng: Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(3, 7))]
    what, expression = rng.choice(
        (
            ("sum", "sum(numbers)"),
            ("largest", "max(numbers)"),
            ("smallest", "min(numbers)"),
            ("average", "round(sum(numbers) / len(numbers), 2)"),
            ("sorted list", "sorted(numbers)"),
            ("count", "len(numbers)"),
            ("reversed list", "numbers[::-1]"),
            ("list of even numbers", "[n for n in numbers if n % 2 == 0]"),
        )
    )
    listed = ", ".join(map(str, numbers))
    question = f"What is the {what} of {listed}?"
    return question, f"numbers = [{listed}]\nprint({expression})"


def _word_task(rng: Random) -> tuple[str, str]:
    word = lexicon.made_up_word(rng)
    letter = rng.choice(word)
    question, expression = rng.choice(
        (
            ('How many letters has "{w}"?', "len(word)"),
            ('What is "{w}" backwards?', "word[::-1]"),
            ('What is "{w}" in capitals?', "word.upper()"),
            ('What is the last letter of "{w}"?', "word[-1]"),
            ('How often is "{c}" in "{w}"?', 'word.count("{c}")'),
            ('What is "{w}" {n} times?', "word * {n}"),
        )
    )
    slots = {"w": word, "c": letter, "n": rng.randint(2, 5)}
    code = f'word = "{word}"\nprint({expression.format(**slots)})'
    return question.format(**slots), code


def _sum_task(rng: Random) -> tuple[str, str]:
    one, two, three = lexicon.number(rng), lexicon.number(rng), rng.randint(2, 20)
    question, code = rng.choice(
        (
            ("What is {a} + {b}?", "print({a} + {b})"),
            ("What is {a} * {b}?", "print({a} * {b})"),
            ("What is {a} - {b}?", "print({a} - {b})"),
            ("What is the sum of 1 to {a}?", "print(sum(range(1, {a} + 1)))"),
            ("What is {c} to the power of 3?", "print({c} ** 3)"),
            ("What is the rest of {a} divided by {c}?", "print({a} % {c})"),
        )
    )
    slots = {"a": one, "b": two, "c": three}
    return question.format(**slots), code.format(**slots)


def generate(rng: Random) -> Document:
    """Return a question about numbers or a word, its code, output and answer."""
    question, code = rng.choice((_number_task, _word_task, _sum_task))(rng)
    turns = chat(
        ("system", INSTRUCTION),
        ("user", question),
        ("assistant", f"```python\n{code}\n```"),
        ("tool", run(code)),
        ("assistant", f"The answer is {run(code)}."),
    )
    return Document("code", "act", turns, (code,))


def check(document: Document) -> bool:
    """Return whether running the code gives the output that the answer states."""
    code = extract_code(document.turns[0].completion)
    return code is not None and document.answer == f"The answer is {run(code)}."
