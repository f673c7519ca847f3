"""Greedy completion of many prompts at once, to evaluate checkpoints in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.corpus.documents import END_OF_TEXT, IM_END

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

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
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        completions = [""] * len(prompts)
        for start in range(0, len(order), _BATCH_SIZE):
            indices = order[start : start + _BATCH_SIZE]
            texts = self._complete_batch(
                [prompts[i] for i in indices], max_tokens, stop
            )
            for index, text in zip(indices, texts, strict=True):
                completions[index] = text
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
        self, prompts: list[str], max_tokens: int, stop: str
    ) -> list[str]:
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
            best = logits.argmax(-1)
            for row, token_id in enumerate(best.tolist()):
                if is_open[row]:
                    is_open[row] = self._accept(rows.generated[row], token_id, stop)
            if not any(is_open):
                break
            new_ids, positions = best[:, None], positions[:, -1:] + 1
            rows.is_token = torch.nn.functional.pad(rows.is_token, (0, 1), value=True)
            mask = rows.is_token[:, None]
        return [
            self.tokenizer.decode(ids, skip_special_tokens=False)
            for ids in rows.generated
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
