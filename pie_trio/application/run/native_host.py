"""The SDK's host in the same process: each call crosses to the thread where trio runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from inferlet_py._errors import make_host_error
from inferlet_py._host import ModelInfo, SamplerValues
from pie_trio.application.waiting import Waiting
from pie_trio.errors import EngineError, InferletError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.application.host.session import Session

__all__ = ["NativeHost"]

T = TypeVar("T")


class NativeHost:
    """Implements ``inferlet_py``'s ``Host`` on a session. Called from outside of trio's thread.

    Args:
        session: The instance's side of the calls.
        token: Of the trio loop that the session belongs to.
    """

    def __init__(self, session: Session, token: trio.lowlevel.TrioToken) -> None:
        self._session, self._token = session, token

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a method of the session under trio; wait if it has to."""

        async def call() -> Any:
            answer = function(*args)
            if isinstance(answer, Waiting):
                self._session.settle()
                return await answer.work()
            return answer

        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except (InferletError, EngineError) as error:
            raise make_host_error(error.code, str(error)) from None

    def get_version(self) -> str:
        return self._session.get_version()

    def get_instance_id(self) -> str:
        return self._session.get_instance_id()

    def get_arguments(self) -> str:
        return self._session.get_arguments()

    def now(self) -> float:
        now: float = self._call(self._session.now)
        return now

    def log(self, level: str, text: str) -> None:
        self._call(self._session.write_log, level, text)

    def send(self, text: str) -> int | None:
        ticket: int | None = self._call(self._session.send, text)
        return ticket

    def send_bytes(self, data: bytes) -> int | None:
        ticket: int | None = self._call(self._session.send, data)
        return ticket

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
        ready: list[int] = self._call(self._session.wait, list(tickets), deadline)
        return ready

    def finish(self, ticket: int) -> None:
        self._call(self._session.finish, ticket)

    def cancel(self, ticket: int) -> None:
        self._call(self._session.cancel, ticket)

    def available_models(self) -> Sequence[str]:
        return self._session.available_models()

    def get_model(self, name: str) -> ModelInfo:
        (
            model_name,
            traits,
            description,
            version,
            license_,
            prompt_template,
            vocab_size,
            max_positions,
            eos_tokens,
            kv_page_size,
            max_forward_tokens,
            max_distribution,
        ) = self._call(self._session.get_model, name)
        return ModelInfo(
            name=model_name,
            traits=tuple(traits),
            description=description,
            version=version,
            license=license_,
            prompt_template=prompt_template,
            vocab_size=vocab_size,
            max_positions=max_positions,
            eos_tokens=tuple(eos_tokens),
            kv_page_size=kv_page_size,
            max_forward_tokens=max_forward_tokens,
            max_distribution=max_distribution,
        )

    def create_queue(self, queue: int, model: str) -> None:
        self._call(self._session.create_queue, queue, model)

    def destroy_queue(self, queue: int) -> None:
        self._call(self._session.destroy_queue, queue)

    def synchronize(self, queue: int) -> int:
        ticket: int = self._call(self._session.synchronize, queue)
        return ticket

    def alloc_kvpage(self, queue: int, pages: Sequence[int]) -> None:
        self._call(self._session.alloc_kvpage, queue, list(pages))

    def dealloc_kvpage(self, queue: int, pages: Sequence[int]) -> None:
        self._call(self._session.dealloc_kvpage, queue, list(pages))

    def fork_kvpage(
        self, queue: int, sources: Sequence[int], targets: Sequence[int]
    ) -> None:
        self._call(self._session.fork_kvpage, queue, list(sources), list(targets))

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
        request = (
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            list(pages),
            start,
            None if mask is None else [list(row) for row in mask],
            np.array(outputs, np.int32),
            sampler,
            top,
        )
        ticket: int = self._call(self._session.forward_text, queue, request)
        return ticket

    def take_forward(
        self, ticket: int
    ) -> tuple[Sequence[int], Sequence[int], Sequence[float]]:
        tokens, top_ids, top_probs = self._call(self._session.take_forward, ticket)
        return tokens, top_ids.tolist(), top_probs.tolist()

    def tokenize(self, model: str, text: str, special: bool) -> Sequence[int]:
        tokens: list[int] = self._call(
            self._session.tokenize, model, text, special
        ).tolist()
        return tokens

    def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        text: str = self._call(self._session.detokenize, model, list(tokens))
        return text

    def get_vocabs(self, model: str) -> Sequence[bytes]:
        return [
            token.tobytes() for token in self._call(self._session.get_vocabs, model)
        ]
