"""The host in Wasm: the component's imports. Importable inside a component only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from componentize_py_types import Err
from wit_world.imports import (
    allocate,
    forward,
    messaging,
    models,
    queues,
    runtime,
    tickets,
    tokenize,
)

from inferlet_py._errors import HostError, make_host_error
from inferlet_py._host import ModelInfo, SamplerValues

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEVELS = {
    "debug": runtime.Level.DEBUG,
    "info": runtime.Level.INFO,
    "warning": runtime.Level.WARNING,
    "error": runtime.Level.ERROR,
}


def _raised(failure: Err) -> HostError:
    code = failure.value.code.name.lower().replace("_", "-")
    return make_host_error(code, failure.value.message)


class WasmHost:
    """Implements ``Host`` on the imports of the component."""

    get_version = staticmethod(runtime.get_version)
    get_instance_id = staticmethod(runtime.get_instance_id)
    get_arguments = staticmethod(runtime.get_arguments)
    now = staticmethod(runtime.now)
    cancel = staticmethod(tickets.cancel)
    available_models = staticmethod(models.available_models)

    def log(self, level: str, text: str) -> None:
        runtime.log(_LEVELS[level], text)

    def send(self, text: str) -> int | None:
        try:
            return messaging.send(text)
        except Err as failure:
            raise _raised(failure) from None

    def send_bytes(self, data: bytes) -> int | None:
        try:
            return messaging.send_bytes(data)
        except Err as failure:
            raise _raised(failure) from None

    def wait(self, wanted: Sequence[int], deadline: float | None) -> Sequence[int]:
        try:
            return tickets.wait(list(wanted), deadline)
        except Err as failure:
            raise _raised(failure) from None

    def finish(self, ticket: int) -> None:
        try:
            tickets.finish(ticket)
        except Err as failure:
            raise _raised(failure) from None

    def get_model(self, name: str) -> ModelInfo:
        try:
            info = models.get_model(name)
        except Err as failure:
            raise _raised(failure) from None
        return ModelInfo(
            name=info.name,
            traits=tuple(info.traits),
            description=info.description,
            version=info.version,
            license=info.license,
            prompt_template=info.prompt_template,
            vocab_size=info.vocab_size,
            max_positions=info.max_positions,
            eos_tokens=tuple(info.eos_tokens),
            kv_page_size=info.kv_page_size,
            max_forward_tokens=info.max_forward_tokens,
            max_distribution=info.max_distribution,
        )

    def create_queue(self, queue: int, model: str) -> None:
        try:
            queues.create_queue(queue, model)
        except Err as failure:
            raise _raised(failure) from None

    def destroy_queue(self, queue: int) -> None:
        try:
            queues.destroy_queue(queue)
        except Err as failure:
            raise _raised(failure) from None

    def synchronize(self, queue: int) -> int:
        try:
            return queues.synchronize(queue)
        except Err as failure:
            raise _raised(failure) from None

    def alloc_kvpage(self, queue: int, pages: Sequence[int]) -> None:
        try:
            allocate.alloc_kvpage(queue, list(pages))
        except Err as failure:
            raise _raised(failure) from None

    def dealloc_kvpage(self, queue: int, pages: Sequence[int]) -> None:
        try:
            allocate.dealloc_kvpage(queue, list(pages))
        except Err as failure:
            raise _raised(failure) from None

    def fork_kvpage(
        self, queue: int, sources: Sequence[int], targets: Sequence[int]
    ) -> None:
        try:
            allocate.fork_kvpage(queue, list(sources), list(targets))
        except Err as failure:
            raise _raised(failure) from None

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
    ) -> int:
        request = forward.ForwardRequest(
            list(tokens),
            list(positions),
            list(pages),
            start,
            None if mask is None else [list(row) for row in mask],
            list(outputs),
            None if sampler is None else forward.Sampler(*sampler),
            top,
        )
        try:
            return forward.forward_text(queue, request)
        except Err as failure:
            raise _raised(failure) from None

    def take_forward(
        self, ticket: int
    ) -> tuple[Sequence[int], Sequence[int], Sequence[float]]:
        try:
            result = forward.take_forward(ticket)
        except Err as failure:
            raise _raised(failure) from None
        return result.tokens, result.top_ids, result.top_probs

    def tokenize(
        self, model: str, text: str, special: bool
    ) -> Sequence[int]:  # the WIT's order
        try:
            return tokenize.tokenize(model, text, special)
        except Err as failure:
            raise _raised(failure) from None

    def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        try:
            return tokenize.detokenize(model, list(tokens))
        except Err as failure:
            raise _raised(failure) from None

    def get_vocabs(self, model: str) -> Sequence[bytes]:
        try:
            return [bytes(token) for token in tokenize.get_vocabs(model)]
        except Err as failure:
            raise _raised(failure) from None
