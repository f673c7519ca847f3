"""An engine whose model has read one script: what it says to a prompt is known. For tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch, Tokenizer
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.outputs import OutputPlan

__all__ = ["ScriptedEngine"]


_LIKELY, _LESS_LIKELY = 20.0, 0.001
_SHOWN = 60


class ScriptedEngine(FakeEngine):
    """A :class:`FakeEngine` that continues texts as a script says, then ends them.

    A text that ends in a prompt of the script, or in such a prompt and the beginning of its
    continuation, goes on with the next token of the continuation; after that comes the token
    for the end. With several continuations all their next tokens are about equally likely, the
    first one the most. Where several prompts match, the longest counts.

    Args:
        script: Continuations by prompt.
        tokenizer: Of the vocabulary; None for one token a byte.
        eos_token_id: Of the tokenizer.
        bos_token_id: Of the tokenizer; None for none.
        name: Of the model.
        num_pages: KV pages.
    """

    def __init__(
        self,
        script: Mapping[str, str | Sequence[str]],
        *,
        tokenizer: Tokenizer | None = None,
        eos_token_id: int = 257,
        bos_token_id: int | None = 256,
        name: str = "scripted",
        num_pages: int = 4096,
    ) -> None:
        super().__init__(name=name, num_pages=num_pages)
        self.tokenizer: Tokenizer = tokenizer or FakeTokenizer()
        self._script = {
            prompt: [said] if isinstance(said, str) else list(said)
            for prompt, said in script.items()
        }
        self._eos_token_id = eos_token_id
        self._info = replace(
            self._info,
            vocab_size=len(self.tokenizer.vocabulary()),
            eos_token_ids=(eos_token_id,),
            bos_token_id=bos_token_id,
            max_positions=1 << 20,
        )

    def make_logits(
        self,
        batch: Batch,
        metadata: BatchMetadata,
        plan: OutputPlan,
        states: NDArray[np.uint64],
    ) -> NDArray[np.float32]:
        """Return ``[num_head_rows, vocab_size]`` float32.

        Raises:
            EngineError: The script has nothing for a text, or a row is no token of a text.
        """
        logits = np.zeros((len(plan.head_rows), self.info.vocab_size), np.float32)
        for row, state in zip(logits, plan.head_rows.tolist(), strict=True):
            if state >= len(metadata.token_ids):
                raise EngineError("a scripted model knows texts, not hidden states")
            next_tokens = self._next_tokens(self._text_at(batch, metadata, state))
            for rank, token in reversed(list(enumerate(next_tokens))):
                row[token] = _LIKELY - rank * _LESS_LIKELY
        return logits

    def _text_at(self, batch: Batch, metadata: BatchMetadata, state: int) -> str:
        """Return the text that a new token ends, as far as it attends to it."""
        index = int(np.searchsorted(metadata.qo_indptr, state, side="right")) - 1
        request = batch.forwards[index]
        own_row = state - int(metadata.qo_indptr[index])
        slots = metadata.context_slots(np.array([index]))[0]  # [S]
        if request.mask is None:
            is_seen = np.arange(len(slots)) <= own_row + request.kv_len - len(
                request.token_ids
            )
        else:
            is_seen = request.mask[own_row]
        # The lowest layer holds what entered, scrambled so that it can be told again.
        entered = _unmix(self._store[0][slots[is_seen]])
        positions = entered & np.uint64(0xFFFFFFFF)
        token_ids = (entered >> np.uint64(32))[np.argsort(positions, kind="stable")]
        known = token_ids[token_ids < self.info.vocab_size].astype(np.int64).tolist()
        return self.tokenizer.decode(known, skip_special_tokens=True)

    def _next_tokens(self, text: str) -> list[int]:
        for prompt in sorted(self._script, key=len, reverse=True):
            found: dict[int, None] = {}
            for said in self._script[prompt]:
                if (num_said := _num_said(text, prompt, said)) is not None:
                    found[self._token_after(said, num_said)] = None
            if found:
                return list(found)
        shown = text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
        raise EngineError(
            f"the script has nothing for a text that ends in {shown!r}: its prompts are "
            f"{', '.join(map(repr, self._script)) or 'none'}"
        )

    def _token_after(self, said: str, num_said: int) -> int:
        rest = said[num_said:]
        if not rest:
            return self._eos_token_id
        return int(self.tokenizer.encode(rest, add_special_tokens=False)[0])


def _num_said(text: str, prompt: str, said: str) -> int | None:
    """Return how much of a continuation a text ends in; None if it is not in it."""
    for count in range(min(len(said), len(text) - len(prompt)), -1, -1):
        if text.endswith(prompt + said[:count]):
            return count
    return None


def _unmix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what :func:`~.sampler.splitmix64` made these numbers of."""
    numbers = numbers ^ (numbers >> np.uint64(31)) ^ (numbers >> np.uint64(62))
    numbers = numbers * np.uint64(pow(0x94D049BB133111EB, -1, 1 << 64))
    numbers = numbers ^ (numbers >> np.uint64(27)) ^ (numbers >> np.uint64(54))
    numbers = numbers * np.uint64(pow(0xBF58476D1CE4E5B9, -1, 1 << 64))
    numbers = numbers ^ (numbers >> np.uint64(30)) ^ (numbers >> np.uint64(60))
    return numbers - np.uint64(0x9E3779B97F4A7C15)
