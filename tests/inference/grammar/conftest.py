from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pie_trio
from pie_trio.inference.grammar import GrammarVocabulary
from tests.inference.grammar.walks import BYTE_TOKENS, END

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def byte_vocabulary() -> GrammarVocabulary:
    """A token for each byte, some of several bytes, a special one, and two ends."""
    return GrammarVocabulary(BYTE_TOKENS, eos_token_ids=[END, END + 1])


@pytest.fixture(scope="session")
def pie_tiny_vocabulary() -> GrammarVocabulary:
    """That of the model that comes with the package."""
    path = Path(pie_trio.__file__).parent / "models/pie_tiny/tokenizer.json"
    return GrammarVocabulary.from_tokenizer(path, vocab_size=2048, eos_token_ids=[2])


@pytest.fixture(scope="session")
def shared_vocabulary(shared_directory: Path) -> Callable[[str], GrammarVocabulary]:
    """Published tokenizers, by name; each is read once."""
    made: dict[str, GrammarVocabulary] = {}
    sizes = {"qwen3": (151936, [151643, 151645]), "gpt2": (50257, [50256])}

    def make(name: str) -> GrammarVocabulary:
        if name not in made:
            path = shared_directory / "tokenizers" / name / "tokenizer.json"
            size, ends = sizes[name]
            made[name] = GrammarVocabulary.from_tokenizer(path, size, ends)
        return made[name]

    return make
