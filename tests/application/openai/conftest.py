"""Servers with the programs that come with Pie, and the official client of OpenAI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import openai
import pytest

from pie_trio.application.run.command import LOCAL_GRANTS, load_engines
from pie_trio.application.run.setup import default_model
from pie_trio.application.server.program_store import BUILT_IN
from pie_trio.engine_api import ChatTemplates
from pie_trio.inference.fake import FakeEngine
from tests.application.server.conftest import open_server

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.serving import LoadedEngine
    from tests.application.server.conftest import OpenServer, Served

__all__ = ["open_server"]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}\n{% endfor %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}assistant:"
)
"""Of a model that knows no special tokens."""


@dataclass
class Asking:
    """A server and a client of it."""

    served: Served
    client: openai.AsyncOpenAI
    engine: FakeEngine

    async def chat(self, text: str = "hello", **options: Any) -> Any:
        """Ask for a chat completion, of the text of a user unless there are messages."""
        messages = options.pop("messages", [{"role": "user", "content": text}])
        model = options.pop("model", self.engine.info.name)
        create: Any = self.client.chat.completions.create
        return await create(model=model, messages=messages, **options)


OpenAsking = Callable[..., AbstractAsyncContextManager[Asking]]


@pytest.fixture
def open_asking(open_server: OpenServer, tmp_path: Path) -> OpenAsking:
    """Opens servers over a fake engine with a chat template, or over a given engine."""
    (tmp_path / "built_in").symlink_to(BUILT_IN)

    @asynccontextmanager
    async def open_it(
        engine: Any = None, *, key: str = "none", **options: Any
    ) -> AsyncGenerator[Asking]:
        engine = engine or FakeEngine(num_pages=512)
        if not engine.info.chat.by_name:
            templates = ChatTemplates({"default": TEMPLATE}, {})
            engine._info = replace(engine.info, chat=templates)
        options.setdefault("grants", LOCAL_GRANTS)
        async with (
            open_server(engine=engine, num_warm=2, **options) as served,
            openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{served.web.port}/v1",
                api_key=key,
                max_retries=0,
            ) as client,
        ):
            yield Asking(served, client, engine)
            # What chats share outlives them; it is the owner's, until pages are short.
            for model in served.launcher.models.values():
                model.exports.clear()

    return open_it


@pytest.fixture(scope="session")
def tiny(torch_is_there: None) -> Generator[LoadedEngine]:
    """The model that comes with Pie."""
    with load_engines([replace(default_model(), num_pages=1024)]) as (loaded,):
        yield loaded


@pytest.fixture
def open_tiny(open_asking: OpenAsking, tiny: LoadedEngine) -> OpenAsking:
    """Opens servers over the model that comes with Pie."""

    def open_it(**options: Any) -> AbstractAsyncContextManager[Asking]:
        return open_asking(tiny.engine, tokenizer=tiny.tokenizer, **options)

    return open_it
