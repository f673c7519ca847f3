"""Train the tokenizer: byte-level BPE in which every digit is a token of its own."""

from __future__ import annotations

import argparse
import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import lexicon, stream
from training.corpus.documents import END_OF_TEXT, IM_END, IM_START

if TYPE_CHECKING:
    from collections.abc import Iterator

PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
# Single tokens, but text: a program must see them in what it decodes.
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
VOCAB_SIZE = 2048
_SPACE = "\u0120"  # how byte-level BPE writes a leading space

logger = logging.getLogger(__name__)


def _plain_texts(seed: int, num_documents: int) -> Iterator[str]:
    for document in islice(stream(seed), num_documents):
        text = document.text
        for token in (*SPECIAL_TOKENS, *TOOL_TOKENS):
            text = text.replace(token, "")
        yield text
    # A name in quotes must be one token like the name in a sentence, or copying it
    # into JSON would take spelling.
    for word in lexicon.all_words():
        yield f'"{word}" {word} ' * (num_documents // 60)


def train_tokenizer(
    *, seed: int, num_documents: int, vocab_size: int = VOCAB_SIZE
) -> Tokenizer:
    """Return a tokenizer trained on the first documents of a seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain_texts(seed, num_documents), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOOL_TOKENS])
    return tokenizer


def twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return pairs of tokens that are one word with and without a leading space."""
    vocab = tokenizer.get_vocab()
    pairs = ((token_id, vocab.get(_SPACE + word)) for word, token_id in vocab.items())
    return sorted((bare, spaced) for bare, spaced in pairs if spaced is not None)


def main() -> None:
    """Train from the command line and write ``tokenizer.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-documents", type=int, default=60_000)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    tokenizer = train_tokenizer(seed=args.seed, num_documents=args.num_documents)
    tokenizer.save(str(args.output))
    logger.info("%d tokens written to %s", tokenizer.get_vocab_size(), args.output)


if __name__ == "__main__":
    main()
