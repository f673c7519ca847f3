"""The tokens of a model, in the form that grammars are matched against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ConfigError
from pie_trio.inference.json_files import read_json_object
from pie_trio.inference.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper

__all__ = ["GrammarVocabulary"]


class GrammarVocabulary:
    """What each token id of a model spells; made once a model, and never changed.

    Attributes:
        vocab_size: Number of token ids.
        num_mask_words: Words of a mask: one bit for each token id.
        eos_token_ids: What may come where the grammar may end, and nowhere else.
        tokens: The bytes of each token id; ``b""`` for one that a grammar never allows.
        library: The same, as llguidance has it.
        executor: The threads that fill masks.
    """

    def __init__(
        self, tokens: Sequence[bytes], *, eos_token_ids: Sequence[int]
    ) -> None:
        """Prepare a vocabulary: a second for 150,000 tokens.

        Args:
            tokens: The bytes of each token id; ``b""`` for special and unused ones.
            eos_token_ids: At least one; their bytes do not matter.

        Raises:
            ConfigError: llguidance is not installed, or there is no such end token.
        """
        try:
            import llguidance
        except ImportError as error:
            raise ConfigError(
                f"grammars need the package llguidance, which cannot be imported ({error}): "
                "pip install llguidance"
            ) from error
        ends = tuple(sorted({int(token_id) for token_id in eos_token_ids}))
        if not ends or ends[0] < 0 or ends[-1] >= len(tokens):
            raise ConfigError(
                f"expected at least one end token with an id in [0, {len(tokens)}), but got "
                f"{list(ends)}: correct eos_token_id in the model's config.json"
            )
        spelled = list(tokens)
        for token_id in ends:
            spelled[token_id] = b""
        self.vocab_size = len(spelled)
        self.num_mask_words = (len(spelled) + 31) // 32
        self.eos_token_ids = ends
        self.tokens = tuple(spelled)
        source = cast("TokenizerWrapper", _Tokens(spelled, ends[0]))
        self.library: LLTokenizer = llguidance.LLTokenizer(source, eos_token=list(ends))
        self.executor: LLExecutor = llguidance.LLExecutor()

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer_json: Path | str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> GrammarVocabulary:
        """Read the tokens of a ``tokenizer.json``.

        Args:
            tokenizer_json: Its path.
            vocab_size: Of the model, which may have more ids than the tokenizer has tokens.
            eos_token_ids: At least one.

        Raises:
            ModelDirectoryError: The file is missing or damaged.
            ConfigError: llguidance is not installed, or there is no such end token.
        """
        path = Path(tokenizer_json)
        tokens = list(load_tokenizer(path, vocab_size=vocab_size).vocabulary())
        added = cast(
            "list[dict[str, Any]]", read_json_object(path).get("added_tokens", [])
        )
        for token in added:
            if token["special"]:
                tokens[token["id"]] = b""
        return cls(tokens, eos_token_ids=eos_token_ids)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes], eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id

    def __call__(self, text: bytes) -> list[int]:
        """Only where a grammar forces its text into tokens of llguidance's choice; ours never do."""
        raise AssertionError("grammars are compiled with no_forcing")
