"""Answer from documents: find passages in the program, and compute each of them once."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence

from inferlet_py import Greedy, KvPage, NotFoundError, Output, Queue, inferlet

DOCUMENTS = [
    "The code of Anna is 4821.",
    "Ben lives in Rome.",
    "Mila keeps the red kite.",
    "The code of Tom is 7350.",
    "Zoe lives in Oslo.",
    "Leo keeps the blue drum.",
    "The code of Clara is 1964.",
    "Noah lives in Paris.",
    "Emma keeps the green boat.",
    "The code of Ivan is 5307.",
    "Ruby lives in Madrid.",
    "Max keeps the yellow cup.",
]
START = "<|im_start|>user\nNotes:\n"
SPAN = 32
"""Positions that a passage may take: so it stands at the same ones beside any others."""


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


def rank(query: str, documents: Sequence[str]) -> list[int]:
    """Return the indices of all documents, the best ones first, by BM25."""
    counts = [Counter(words_of(document)) for document in documents]
    mean = sum(count.total() for count in counts) / len(counts)
    scores = [0.0] * len(counts)
    for word in words_of(query):
        num_with = sum(word in count for count in counts)
        rarity = math.log(1 + (len(counts) - num_with + 0.5) / (num_with + 0.5))
        for index, count in enumerate(counts):
            length = 0.25 + 0.75 * count.total() / mean
            scores[index] += rarity * count[word] * 2.2 / (count[word] + 1.2 * length)
    return sorted(range(len(scores)), key=lambda index: -scores[index])


async def open_passage(queue: Queue, text: str, position: int) -> list[KvPage]:
    """Return the pages of a passage, which is computed if no program has done so yet."""
    digest = hashlib.sha256(f"{position} {text}".encode()).hexdigest()
    try:
        return queue.import_kvpages(f"passage/{digest}")
    except NotFoundError:
        tokens = queue.model.tokenize(text)
        pages = queue.alloc_kvpages(-(-len(tokens) // queue.kv_page_size))
        positions = range(position, position + len(tokens))
        await queue.forward_text(tokens, pages=pages, positions=positions)
        queue.export_kvpages(pages, f"passage/{digest}", persistent=True)
        return pages


async def answer(
    queue: Queue, pages: list[KvPage], question: str, position: int, max_tokens: int
) -> str:
    """Return what the model says to a question behind passages."""
    asked = f"Question: {question}<|im_end|>\n<|im_start|>assistant\n"
    said, fed = list[int](), queue.model.tokenize(asked)
    start = len(pages) * queue.kv_page_size
    pages += queue.alloc_kvpages(-(-(len(fed) + max_tokens) // queue.kv_page_size))
    while len(said) < max_tokens:
        positions = range(position, position + len(fed))
        (out,) = await queue.forward_text(
            fed,
            pages=pages,
            start=start,
            positions=positions,
            outputs=[Output(sampler=Greedy())],
        )
        start, position, fed = start + len(fed), position + len(fed), list(out.tokens)
        if fed[0] in queue.model.info.eos_tokens:
            break
        said += fed
    return queue.model.detokenize(said)


@inferlet
async def main(
    question: str = "Where does Zoe live?",
    documents: list[str] = DOCUMENTS,
    keep: int = 3,
    max_tokens: int = 32,
) -> dict[str, object]:
    """Answer a question from the passages that fit it best.

    Args:
        question: As `What is the code of Anna?` or `What does Mila keep?`
        documents: A passage each, of one sentence.
        keep: Passages to show to the model.
        max_tokens: Most tokens of the answer.
    """
    found = sorted(rank(question, documents)[:keep])
    with Queue() as queue:
        pages = await open_passage(queue, START, 0)
        for index in found:
            place = SPAN * (1 + index)
            pages += await open_passage(queue, f"- {documents[index]}\n", place)
        end = SPAN * (1 + len(documents))
        text = await answer(queue, pages, question, end, max_tokens)
    return {"answer": text, "passages": [documents[index] for index in found]}
