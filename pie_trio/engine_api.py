"""The seam between the control and the inference layer: protocols and their messages.

Plain data and numpy only, so that an engine can live in a thread or in a process of its own.
`control` and `inference` both import this module and never each other. Nobody changes a message;
those of which each token needs one are not frozen all the same, for that makes them four times as
slow to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.errors import EngineError

__all__ = [
    "MAX_DRY_LENGTH",
    "NO_PROCESSOR",
    "NO_REQUEST",
    "NO_SLOT",
    "Batch",
    "BatchResult",
    "ChatTemplates",
    "Engine",
    "ForwardRequest",
    "ModelInfo",
    "OutputResult",
    "OutputSpec",
    "PageCopy",
    "PipelinedEngine",
    "ProcessorSpec",
    "ProjectRequest",
    "RequestResult",
    "SamplerSpec",
    "Tokenizer",
    "as_pipelined",
    "may_follow",
]

NO_SLOT = -1
"""In :attr:`ForwardRequest.input_slots`: the token enters by its id, as usual."""

NO_REQUEST = -1
"""In :attr:`ForwardRequest.follows`: all tokens are known."""

NO_PROCESSOR = 0
"""In :attr:`OutputSpec.processor`: logits are sampled as they are."""

MAX_DRY_LENGTH = 256
"""The longest repetition that :attr:`ProcessorSpec.dry_multiplier` tells from longer ones."""


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """What a model came with for chats: text, which is not run here.

    Attributes:
        by_name: Jinja: ``default``, perhaps ``tool_use`` and others; empty without any.
        special_tokens: Their texts by the names that templates use, as ``bos_token``.
    """

    by_name: Mapping[str, str] = field(default_factory=dict[str, str])
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a guest may know of a model.

    Attributes:
        name: The name under which the server offers it.
        architecture: As in the model's ``config.json``, for example ``LlamaForCausalLM``.
        traits: Names of the WIT interfaces (traits) that the model supports.
        vocab_size: Number of token ids; every id is below it.
        max_positions: Longest context that the model was made for. Longer is allowed.
        bos_token_id: Put before a text by ``encode(add_special_tokens=True)``; None if none.
        eos_token_ids: Ids that end a generation.
        prompt_template: The default chat template (Jinja) as published, or "".
        page_size: Tokens in a KV page.
        num_pages: KV pages that the engine has.
        page_bytes: Bytes of one page in all layers, as :meth:`Engine.read_pages` returns it.
        hidden_size: Numbers in a hidden state.
        num_embeds: Places for hidden states: see :attr:`OutputSpec.store`.
        adapters: Names of the adapters (LoRA) that are loaded.
        chat: All of its chat templates, and what they refer to.
    """

    name: str
    architecture: str
    traits: tuple[str, ...]
    vocab_size: int
    max_positions: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    prompt_template: str
    page_size: int
    num_pages: int
    page_bytes: int = 0
    hidden_size: int = 0
    num_embeds: int = 0
    adapters: tuple[str, ...] = ()
    description: str = ""
    version: str = ""
    license: str = ""
    chat: ChatTemplates = field(default_factory=ChatTemplates, hash=False)


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """How to choose the next token from one row of logits.

    The draw of a row depends on ``seed`` and the row's position alone: not on the batch, nor
    on what was drawn before. Filters apply to the softmax of ``logits / temperature`` in the
    order of the attributes below; each sees what the one before it left, with the
    probabilities scaled to a sum of one again.

    Attributes:
        temperature: 0 means greedy, and everything else is ignored.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 1.0 keeps all.
        min_p: Drop tokens less likely than ``min_p`` times the most likely; 0.0 keeps all.
        seed: 64 bits.
        typical_p: Keep the smallest set with at least this probability, of the tokens whose
            information is closest to the entropy; 1.0 keeps all.
        epsilon_cutoff: Drop tokens less likely than this, but never the most likely; 0.0
            keeps all.
        eta_cutoff: Drop tokens less likely than the smaller one of this and of its root times
            ``exp(-entropy)``, but never the most likely; 0.0 keeps all.
        xtc_threshold: What :attr:`xtc_probability` is about.
        xtc_probability: How often, of the tokens at least as likely as ``xtc_threshold``, all
            but the least likely are dropped; 0.0 is never.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_threshold: float = 0.1
    xtc_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessorSpec:
    """What changes the logits of one sequence before a token is chosen.

    A processor has the history of the tokens that it was told of, and applies to the row that
    comes next: first the bias; then the penalties, in the order repetition, presence and
    frequency, DRY; then what is not allowed gets ``-inf``. Temperature and the filters of a
    :class:`SamplerSpec` come after that, with Mirostat as one more lower bound in the place of
    ``epsilon_cutoff``.

    Attributes:
        grammar_kind: ``json-schema``, ``regex``, ``lark`` or ``gbnf``; "" for no grammar.
        grammar: Its text. The tokens of the history, without the prompt, follow it.
        bias: Token ids, each once, with what is added to their logits; ``-inf`` forbids one.
        allowed_tokens: All others are forbidden; None allows all.
        repetition_penalty: Logits of tokens in the window are divided by it where they are
            positive, else multiplied; 1.0 changes nothing. See Keskar et al. 2019,
            arXiv:1909.05858.
        presence_penalty: Subtracted once for each token in the window.
        frequency_penalty: Subtracted for each time that a token is in the window.
        dry_multiplier: A token that would prolong a repetition of ``n`` tokens, where ``n`` is
            at least ``dry_allowed_length``, loses
            ``dry_multiplier * dry_base ** (n - dry_allowed_length)``; 0.0 is off. Repetitions
            longer than :data:`MAX_DRY_LENGTH` count as that long.
        dry_base: At least 1.
        dry_allowed_length: At least 1.
        dry_breakers: Token ids that no repetition goes across.
        window: So many of the latest tokens, prompt included, count for the penalties; 0 for
            all of them.
        prompt: Tokens before the history; the grammar does not see them.
        mirostat_tau: Target surprise of Mirostat 2 in bits; 0.0 is off. See Basu et al. 2021,
            arXiv:2007.14966.
        mirostat_eta: Its learning rate.
    """

    grammar_kind: str = ""
    grammar: str = ""
    bias: tuple[tuple[int, float], ...] = ()
    allowed_tokens: tuple[int, ...] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: tuple[int, ...] = ()
    window: int = 0
    prompt: tuple[int, ...] = ()
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1


@dataclass(slots=True)
class OutputSpec:
    """What to return for some rows: new tokens of a forward, or slots of a projection.

    Attributes:
        rows: ``[num_rows]`` int32, indices into the request's own new tokens (or slots).
        sampler: Sample one token a row; None samples nothing.
        top_k: Return the k most likely tokens and their probabilities (of the softmax at
            temperature 1) a row; 0 returns none.
        logprobs: Return the log-probability (at temperature 1) of each sampled token; nothing
            without a sampler.
        entropy: Return the entropy of the softmax at temperature 1, in nats.
        logits: Return the raw logits.
        hidden: Return the last hidden state, before the final norm.
        store: ``[num_rows]`` int32, the places among ``num_embeds`` that the rows' hidden
            states are kept in on the device; None keeps none.
        processor: What the logits go through before the token is sampled; ``NO_PROCESSOR``
            for nothing. It needs a sampler and exactly one row. Everything else that is
            returned is of the logits as the model gave them.
        accept_sampled: The processor accepts the token that was sampled.
    """

    rows: NDArray[np.int32]
    sampler: SamplerSpec | None = None
    top_k: int = 0
    logprobs: bool = False
    entropy: bool = False
    logits: bool = False
    hidden: bool = False
    store: NDArray[np.int32] | None = None
    processor: int = NO_PROCESSOR
    accept_sampled: bool = False


@dataclass(slots=True)
class ForwardRequest:
    """New tokens of one context, and the pages that they read and write.

    The slots of a context are numbered along ``page_ids``: slot ``i`` is token ``i % page_size``
    of page ``page_ids[i // page_size]``. The keys of the new tokens are written to the last
    ``len(token_ids)`` of the first ``kv_len`` slots; the slots before them were written earlier.

    Attributes:
        token_ids: ``[num_tokens]`` int32, at least one.
        positions: ``[num_tokens]`` int32, what the rotary embedding sees. Any value >= 0.
        page_ids: ``[num_pages]`` int32, physical; at least ``ceil(kv_len / page_size)`` of them.
            Inside of the control layer they are virtual ones, intp.
        kv_len: Slots in use after this forward.
        mask: ``[num_tokens, kv_len]`` bool, True where a new token attends to a slot; each row
            attends at least to one. None: new token ``i`` attends to slots
            ``0 .. kv_len - num_tokens + i``.
        outputs: What to return, each for rows of its own; empty for a pure prefill. Rows may
            occur in several of them.
        input_slots: ``[num_tokens]`` int32: the token enters as the hidden state that was
            stored in this place, instead of by its id; ``NO_SLOT`` where it does not. None
            where no token does. The state enters as it was stored, before the final norm, and
            the id beside it is not looked at, but must be one.
        adapter: Name of an adapter of the model; "" for none.
        follows: The first new token is the one that this forward of the batch submitted before
            samples, and its id here is not looked at, but must be one; ``NO_REQUEST`` for none.
            See :meth:`PipelinedEngine.submit`, :func:`may_follow`, and
            :class:`pie_trio.control.device_steps.DeviceSteps` for all other engines.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    page_ids: NDArray[np.integer[Any]]
    kv_len: int
    mask: NDArray[np.bool_] | None = None
    outputs: tuple[OutputSpec, ...] = ()
    input_slots: NDArray[np.int32] | None = None
    adapter: str = ""
    follows: int = NO_REQUEST


@dataclass(slots=True)
class ProjectRequest:
    """Turn stored hidden states into distributions: final norm and head, no attention.

    Attributes:
        slots: ``[num_slots]`` int32, places that an earlier step stored hidden states in.
        positions: ``[num_slots]`` int32, of the tokens that they belong to; they and the seed
            decide a draw.
        outputs: As of a forward; rows are indices into ``slots``.
    """

    slots: NDArray[np.int32]
    positions: NDArray[np.int32]
    outputs: tuple[OutputSpec, ...]


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy the keys and values of ``count`` tokens from one page to another."""

    source: int
    target: int
    source_offset: int
    target_offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of the device: all copies in order, all forwards at once, all projections.

    No forward of a batch reads a slot that another forward of the same batch writes; nor is a
    hidden state read that the same batch stores.
    """

    forwards: tuple[ForwardRequest, ...] = ()
    copies: tuple[PageCopy, ...] = ()
    projections: tuple[ProjectRequest, ...] = ()


@dataclass(slots=True)
class OutputResult:
    """What an :class:`OutputSpec` asked for; what was not asked for is empty (``[0]``).

    Attributes:
        token_ids: ``[num_rows]`` int32, sampled.
        top_ids: ``[num_rows, top_k]`` int32, most likely first.
        top_probs: ``[num_rows, top_k]`` float32.
        logprobs: ``[num_rows]`` float32, of ``token_ids``.
        entropy: ``[num_rows]`` float32, in nats.
        logits: ``[num_rows, vocab_size]`` float32.
        hidden: ``[num_rows, hidden_size]`` float32.
        has_ended: The processor has accepted the token, and nothing but the end can follow.
    """

    token_ids: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_probs: NDArray[np.float32]
    logprobs: NDArray[np.float32]
    entropy: NDArray[np.float32]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]
    has_ended: bool = False


RequestResult = tuple[OutputResult, ...]
"""One for each of the request's outputs."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a step returned, in the order of the batch.

    A request of which something was not finite has the error in its place; what it was to
    write is then undefined, while the others are not concerned.
    """

    forwards: tuple[RequestResult | EngineError, ...]
    projections: tuple[RequestResult | EngineError, ...] = ()


class Engine(Protocol):
    """Runs batches of one model, one at a time."""

    @property
    def info(self) -> ModelInfo:
        """What the model is; constant but for its adapters."""
        ...

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step. Blocks.

        Raises:
            EngineError: The step failed. What the batch would have written is undefined.
        """
        ...

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return ``[num_pages, page_bytes]``, a copy of these pages in host memory. Blocks.

        Raises:
            EngineError: They cannot be read.
        """
        ...

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        """Put back what :meth:`read_pages` returned, into any pages. Blocks.

        Raises:
            EngineError: They cannot be written.
        """
        ...

    def create_processor(self, processor: int, spec: ProcessorSpec) -> None:
        """Make a processor under an unused number. Blocks while its grammar is compiled.

        Any thread may call this, several at once. The methods below do not block for long;
        they, and steps that name the processor, must not run at the same time for one
        processor.

        Raises:
            BadArgumentError: A value or the grammar cannot be used; the message says why.
            UnsupportedError: The engine has no grammars.
            EngineError: The number is in use, or there is no such processor.
        """
        ...

    def fork_processor(
        self, source: int, targets: Sequence[int], *, is_ahead: bool = False
    ) -> None:
        """Let unused numbers go on from where a processor is.

        Args:
            source: Stays as it is.
            targets: Independent of it and of each other.
            is_ahead: The source is going to be told what is sampled through the targets, so
                that it learns from their draws: see :meth:`accept_tokens`.

        Raises:
            EngineError: A number is in use, or there is no such processor.
        """
        ...

    def accept_tokens(self, processor: int, token_ids: Sequence[int]) -> int:
        """Tell a processor which tokens were chosen.

        Mirostat learns from tokens that were sampled through the processor in this place, or
        through a fork that is ahead.

        Returns:
            How many of them it allows: it has accepted these, and none after them.

        Raises:
            BadArgumentError: One is no token id.
            EngineError: There is no such processor.
        """
        ...

    def roll_back(self, processor: int, count: int) -> None:
        """Take back the latest tokens that a processor accepted, with all that they changed.

        Raises:
            BadArgumentError: It did not accept so many.
            EngineError: There is no such processor.
        """
        ...

    def allowed_tokens(self, processor: int) -> NDArray[np.uint32]:
        """Return ``[ceil(vocab_size / 32)]`` uint32: a bit a token, lowest first.

        Raises:
            EngineError: There is no such processor.
        """
        ...

    def has_ended(self, processor: int) -> bool:
        """Say whether nothing but the end can follow, by the grammar of a processor.

        Raises:
            EngineError: There is no such processor.
        """
        ...

    def drop_processors(self, processors: Sequence[int]) -> None:
        """Forget processors; unknown numbers are fine.

        It may take a moment until their numbers are unused: do not use them again.
        """
        ...

    def load_adapter(self, name: str, directory: Path | str) -> None:
        """Load a LoRA adapter that PEFT has saved; :attr:`info` names it from then on. Blocks.

        Any thread may call this, while steps run. A name stands for the same files for as long
        as the engine lives.

        Args:
            name: For :attr:`ForwardRequest.adapter`: letters, digits and ``_ . / -``.
            directory: With ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            AdapterError: The files cannot be used with this model, or the name is in use, or
                was that of other files.
        """
        ...

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Any thread may call this; it does not block for long.

        Raises:
            AdapterError: There is none of that name, or a step is using it.
        """
        ...

    def close(self) -> None:
        """Give back weights and KV cache. Idempotent."""
        ...


class PipelinedEngine(Engine, Protocol):
    """An engine that can be asked for a step while the one before is still running.

    ``execute`` is for when none is on its way. One thread may ask while another one collects.
    """

    @property
    def is_pipelined(self) -> bool:
        """Its steps do overlap: else ``execute`` does as well."""
        ...

    def submit(self, batch: Batch) -> None:
        """Ask for a step, and do not wait for it. At most two are on their way.

        A forward that :attr:`~ForwardRequest.follows` another one needs nothing of that step on
        the host. Whatever the host has to see first must wait for :meth:`collect`: tokens for
        which :meth:`can_follow` says no, and a processor that a step on its way names.

        Raises:
            MustCollectError: It has to wait for a step on its way; nothing was submitted.
            EngineError: A request is impossible, and nothing was submitted. Or the step failed
                at once.
        """
        ...

    def collect(self) -> BatchResult:
        """Wait for the oldest step on its way, and return its results.

        Raises:
            EngineError: There is none, or it failed: see :meth:`Engine.execute`.
        """
        ...

    def can_follow(self, outputs: Sequence[OutputSpec]) -> bool:
        """Say whether a forward with these outputs may be followed before it is collected."""
        ...


def as_pipelined(engine: Engine) -> PipelinedEngine | None:
    """Return an engine whose steps overlap as such; None for any other."""
    return (
        cast("PipelinedEngine", engine)
        if getattr(engine, "is_pipelined", False)
        else None
    )


def may_follow(outputs: Sequence[OutputSpec]) -> bool:
    """Say whether another forward may follow one with these outputs.

    It samples one token, and no processor has to be told of it.
    """
    if len(outputs) != 1:
        return False
    (spec,) = outputs
    is_sampled = spec.sampler is not None and len(spec.rows) == 1
    return is_sampled and spec.processor == NO_PROCESSOR


class Tokenizer(Protocol):
    """Turns text into token ids and back. May be called from any thread."""

    def encode(self, text: str, *, add_special_tokens: bool) -> NDArray[np.int32]:
        """Return ``[num_tokens]`` int32."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text; bytes that are no whole UTF-8 character become U+FFFD."""
        ...

    def vocabulary(self) -> tuple[bytes, ...]:
        """Return the bytes of each token id, as decoding yields them."""
        ...
