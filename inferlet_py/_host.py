"""The host as the SDK sees it: the functions of the WIT in Python form.

In Wasm they are imports of the component, natively they are calls into a server in the same
process. There is one host for as long as the interpreter lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Host", "ModelInfo", "SamplerValues", "connect", "get_host"]

SamplerValues = tuple[float, int, float, float, int]
"""Temperature, top-k, top-p, min-p, seed: the WIT record ``sampler``."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model is; see ``models.wit``."""

    name: str
    traits: tuple[str, ...]
    description: str
    version: str
    license: str
    prompt_template: str
    vocab_size: int
    max_positions: int
    eos_tokens: tuple[int, ...]
    kv_page_size: int
    max_forward_tokens: int
    max_distribution: int


class Host(Protocol):
    """One method a function of the WIT; a failed call raises ``HostError``."""

    def get_version(self) -> str: ...
    def get_instance_id(self) -> str: ...
    def get_arguments(self) -> str: ...
    def now(self) -> float: ...
    def log(self, level: str, text: str) -> None: ...

    def send(self, text: str) -> int | None: ...
    def send_bytes(self, data: bytes) -> int | None: ...

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]: ...
    def finish(self, ticket: int) -> None: ...
    def cancel(self, ticket: int) -> None: ...

    def available_models(self) -> Sequence[str]: ...
    def get_model(self, name: str) -> ModelInfo: ...

    def create_queue(self, queue: int, model: str) -> None: ...
    def destroy_queue(self, queue: int) -> None: ...
    def synchronize(self, queue: int) -> int: ...

    def alloc_kvpage(self, queue: int, pages: Sequence[int]) -> None: ...
    def dealloc_kvpage(self, queue: int, pages: Sequence[int]) -> None: ...
    def fork_kvpage(
        self, queue: int, sources: Sequence[int], targets: Sequence[int]
    ) -> None: ...

    def forward_text(
        self,
        queue: int,
        tokens: Sequence[int],
        positions: Sequence[int],
        pages: Sequence[int],
        start: int,
        mask: Sequence[Sequence[int]] | None,
        outputs: Sequence[int],
        sampler: SamplerValues | None,
        top: int,
    ) -> int: ...
    def take_forward(
        self, ticket: int
    ) -> tuple[Sequence[int], Sequence[int], Sequence[float]]: ...

    def tokenize(
        self, model: str, text: str, special: bool
    ) -> Sequence[int]: ...  # the WIT's order
    def detokenize(self, model: str, tokens: Sequence[int]) -> str: ...
    def get_vocabs(self, model: str) -> Sequence[bytes]: ...


_connected: list[Host] = []


def connect(host: Host | None) -> None:
    """Make ``host`` the one that this interpreter talks to; None for none any more."""
    _connected[:] = [] if host is None else [host]


def get_host() -> Host:
    """Return the host.

    Raises:
        RuntimeError: The program runs outside of Pie.
    """
    if not _connected:
        raise RuntimeError(
            "this program is not running inside Pie: start it with `pie run PROGRAM`"
        )
    return _connected[0]
