"""Greedy completion of many prompts at once, to evaluate checkpoints in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.corpus.documents import END_OF_TEXT, IM_END

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from pie_trio.inference.grammar import GrammarVocabulary, Matcher
    from training.model import KVCache, Llama

_BATCH_SIZE = 64
# Long enough to hold any stop string of the corpus, short enough to decode each step.
_STOP_WINDOW = 8


@dataclass(slots=True)
class _Rows:
    """Prompts padded on the left to one length, and what has been added to them."""

    token_ids: Tensor  # [B, T]
    is_token: Tensor  # [B, T] bool, false on the padding
    generated: list[list[int]]


class Generator:
    """Completes prompts with the most likely tokens.

    A completion ends before end-of-turn and end-of-text, and behind a stop string.
    """

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self._end_ids = {tokenizer.token_to_id(t) for t in (IM_END, END_OF_TEXT)}

    def complete(
        self, prompts: Sequence[str], *, max_tokens: int = 200, stop: str = ""
    ) -> list[str]:
        """Return one completion a prompt, in order.

        Those that did not end within ``max_tokens`` are cut there.
        """
        completed = self._complete(prompts, None, max_tokens, stop)
        return [text for text, _ in completed]

    def complete_schemas(
        self, prompts: Sequence[str], schemas: Sequence[str], *, max_tokens: int = 200
    ) -> list[str | None]:
        """Return, for each prompt, JSON that is constrained to its JSON Schema.

        Of tokens that the schema does not allow next, none is taken. None stands for what did
        not end within ``max_tokens``.
        """
        from pie_trio.inference.grammar import compile_grammar

        vocabulary = self._vocabulary()
        matchers = [
            compile_grammar("json-schema", schema, vocabulary).matcher()
            for schema in schemas
        ]
        completed = self._complete(prompts, matchers, max_tokens, "")
        return [text if has_ended else None for text, has_ended in completed]

    def _vocabulary(self) -> GrammarVocabulary:
        from pie_trio.inference.grammar import GrammarVocabulary

        ends = [token_id for token_id in self._end_ids if token_id is not None]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            self.tokenizer.save(str(path))
            return GrammarVocabulary.from_tokenizer(
                path, self.tokenizer.get_vocab_size(), ends
            )

    def _complete(
        self,
        prompts: Sequence[str],
        matchers: Sequence[Matcher] | None,
        max_tokens: int,
        stop: str,
    ) -> list[tuple[str, bool]]:
        """Return each completion, and whether it has ended by itself."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        completions = [("", False)] * len(prompts)
        for start in range(0, len(order), _BATCH_SIZE):
            indices = order[start : start + _BATCH_SIZE]
            completed = self._complete_batch(
                [prompts[i] for i in indices],
                None if matchers is None else [matchers[i] for i in indices],
                max_tokens,
                stop,
            )
            for index, completion in zip(indices, completed, strict=True):
                completions[index] = completion
        return completions

    def _rows(self, prompts: list[str]) -> _Rows:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(prompts)]
        length = max(map(len, encoded))
        token_ids = torch.zeros(len(encoded), length, dtype=torch.long)
        is_token = torch.zeros(len(encoded), length, dtype=torch.bool)
        for row, ids in enumerate(encoded):
            token_ids[row, length - len(ids) :] = torch.tensor(ids)
            is_token[row, length - len(ids) :] = True
        return _Rows(token_ids, is_token, [[] for _ in encoded])

    @torch.inference_mode()
    def _complete_batch(
        self,
        prompts: list[str],
        matchers: list[Matcher] | None,
        max_tokens: int,
        stop: str,
    ) -> list[tuple[str, bool]]:
        rows = self._rows(prompts)
        length = rows.token_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding looks at itself, lest softmax see a row without any key.
        mask = causal & rows.is_token[:, None] | torch.eye(length, dtype=torch.bool)
        positions = (rows.is_token.cumsum(1) - 1).clamp(min=0)
        new_ids, past = rows.token_ids, None
        is_open = [True] * len(prompts)
        for _ in range(max_tokens):
            logits, past = self._step(new_ids, positions, mask, past)
            if matchers is not None:
                logits = logits.masked_fill(~_allowed(matchers, logits.shape[1]), -inf)
            best = logits.argmax(-1)
            for row, token_id in enumerate(best.tolist()):
                if is_open[row]:
                    is_open[row] = self._accept(rows.generated[row], token_id, stop)
                    if matchers is not None:
                        matchers[row].accept([token_id])
            if not any(is_open):
                break
            new_ids, positions = best[:, None], positions[:, -1:] + 1
            rows.is_token = torch.nn.functional.pad(rows.is_token, (0, 1), value=True)
            mask = rows.is_token[:, None]
        return [
            (self.tokenizer.decode(ids, skip_special_tokens=False), not is_cut)
            for ids, is_cut in zip(rows.generated, is_open, strict=True)
        ]

    def _step(
        self, token_ids: Tensor, positions: Tensor, mask: Tensor, past: KVCache | None
    ) -> tuple[Tensor, KVCache]:
        return self.model.step(token_ids, positions, mask[:, None], past)

    def _accept(self, generated: list[int], token_id: int, stop: str) -> bool:
        """Add a token; return whether the completion goes on after it."""
        if token_id in self._end_ids:
            return False
        generated.append(token_id)
        if not stop:
            return True
        return stop not in self.tokenizer.decode(generated[-_STOP_WINDOW:])


def _allowed(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """Return ``[num_matchers, vocab_size]`` bool, which tokens each grammar allows next."""
    from pie_trio.inference.grammar import fill_masks

    masks = np.empty((len(matchers), -(-vocab_size // 32)), np.uint32)
    fill_masks(matchers, masks)
    bits = np.unpackbits(
        masks.astype("<u4").view(np.uint8), axis=1, count=vocab_size, bitorder="little"
    )
    return torch.from_numpy(bits).bool()
