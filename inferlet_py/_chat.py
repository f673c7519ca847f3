"""A chat: messages, and a context that holds what the model's template makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferlet_py._closing import AsyncCloses, Closes
from inferlet_py._context import Context
from inferlet_py._reply import Reply
from inferlet_py._text import REPLACEMENT
from inferlet_py._tool_calls import ToolFormat, guess_tool_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferlet_py._models import Model
    from inferlet_py._sampling import Sampler
    from inferlet_py._tools import Tool

__all__ = ["Chat", "Message"]

Message = dict[str, Any]


class Chat(AsyncCloses, Closes):
    """Messages of roles, and replies of the model to them. Use as an (async) context manager.

    Between replies the keys and values stay: the model runs on what is new alone, as long as its
    template leaves what came before as it was. Where it does not, as templates that drop the
    thoughts of earlier turns, the model runs again from the first token that differs.

    What messages say is tokenized with the template around it: a text that spells a special token
    out, as ``<|im_end|>``, is that token. Take such texts out of what strangers write.

    Args:
        system: What the system message says; None for none.
        model: Name of a model of the server; its default one without.
        tools: What the model may call: see :func:`tool`.
        tool_format: How it writes calls, if its template does not tell: see ToolCallParser.
        template: Name of one of its templates, where it has several.
        reuse: As in ``Context.fill``: share the beginning with other chats.
        adapter: As in ``Context``.
        variables: What else the template reads, as ``enable_thinking``.

    Attributes:
        messages: As chat templates read them; they may be changed between replies.
        context: What the model has seen; for reading, it is rewritten before each reply.
    """

    def __init__(
        self,
        system: str | None = None,
        *,
        model: str = "",
        tools: Iterable[Tool[..., Any]] = (),
        tool_format: ToolFormat | None = None,
        template: str = "",
        reuse: bool = False,
        adapter: str = "",
        **variables: Any,
    ) -> None:
        self.messages: list[Message] = []
        self.context = Context(model, adapter=adapter)
        self._tools = tuple(tools)
        self._format: ToolFormat = (
            guess_tool_format(self.context.model.info.prompt_template)
            if tool_format is None
            else tool_format
        )
        self._template, self._variables = template, variables
        self._reuse = reuse
        # The text of the whole context, with the number of its tokens; None where it is unknown.
        self._known: tuple[str, int] | None = None
        if system is not None:
            self.system(system)

    @property
    def model(self) -> Model:
        """The model that replies."""
        return self.context.model

    @property
    def tools(self) -> tuple[Tool[..., Any], ...]:
        """What the model may call."""
        return self._tools

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls."""
        return self._format

    def close(self) -> None:
        """Give the pages of the context back."""
        self.context.close()

    # ---- messages --------------------------------------------------------------------------

    def add(self, role: str, content: str | None, **fields: Any) -> Chat:
        """Append a message, and return the chat."""
        self.messages.append({"role": role, "content": content, **fields})
        return self

    def system(self, content: str) -> Chat:
        """Append a system message, and return the chat."""
        return self.add("system", content)

    def user(self, content: str) -> Chat:
        """Append a message of the user, and return the chat."""
        return self.add("user", content)

    def assistant(self, content: str) -> Chat:
        """Append a message as if the model had replied so, and return the chat."""
        return self.add("assistant", content)

    def tool(self, content: str, **fields: Any) -> Chat:
        """Append the result of a tool that was called elsewhere, and return the chat."""
        return self.add("tool", content, **fields)

    def prompt(self) -> str:
        """Return the text that the next reply continues.

        Raises:
            BadArgumentError: The template refuses the messages: the error has its words.
            UnsupportedError: The model came without a chat template.
        """
        specs = [one.spec() for one in self._tools]
        return self.model.render_chat(
            self.messages,
            tools=specs or None,
            template=self._template,
            **self._variables,
        )

    def count_tokens(self) -> int:
        """Return how many tokens the next reply continues."""
        return len(self.model.tokenize(self.prompt()))

    def fork(self) -> Chat:
        """Return a chat that goes on from here by itself; what the model has seen is shared."""
        child = Chat.__new__(Chat)
        vars(child).update(vars(self))
        child.messages = list(self.messages)
        child.context = self.context.fork()
        return child

    # ---- replies ---------------------------------------------------------------------------

    def reply(
        self,
        *,
        max_tokens: int = 512,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        max_rounds: int = 8,
        **options: Any,
    ) -> Reply:
        """Let the model reply: iterate over the pieces of its text, or await ``text()``.

        What it replied becomes a message once it has ended. Tools that it calls are run, all
        calls of a turn at the same time, their results become messages, and it goes on.

        Args:
            max_tokens: Most tokens of a turn.
            sampler: How to choose them; greedy without.
            stop: Strings that end a turn.
            max_rounds: Most turns; the calls of the last are not made.
            options: As of ``Context.generate``.
        """
        return Reply(
            self,
            max_rounds=max_rounds,
            options={
                "max_tokens": max_tokens,
                "sampler": sampler,
                "stop": stop,
                **options,
            },
        )

    async def prepare(self) -> str:
        """Let the context hold the prompt, and return it. ``reply`` does this by itself.

        Raises:
            BadArgumentError: The template refuses the messages: the error has its words.
            UnsupportedError: The model came without a chat template.
        """
        text = self.prompt()
        known, self._known = self._known, None
        tokens = self._new_tokens(text, known)
        if tokens is None:
            tokens = self.model.tokenize(text)
            common = _common_length(self.context.token_ids, tokens)
            self.context.truncate(common)
            del tokens[:common]
        await self.context.fill(tokens, reuse=self._reuse)
        return text

    def settle(self, text: str, *, is_exact: bool) -> None:
        """Note what the context holds now. ``Reply`` calls this.

        Args:
            text: The prompt, and what was generated.
            is_exact: No token stands in the context that is not in the text.
        """
        is_whole = is_exact and not text.endswith(REPLACEMENT)
        self._known = (text, len(self.context)) if is_whole else None

    def _new_tokens(self, text: str, known: tuple[str, int] | None) -> list[int] | None:
        """Return the tokens to append; None if that cannot be told from the text alone."""
        if known is None or known[1] != len(self.context):
            return None
        if not text.startswith(known[0]):
            return None
        tokens = self.model.tokenize(text[len(known[0]) :])
        # Behind a special token, which has no text of its own, a text is tokenized as if it
        # stood alone; elsewhere a token may reach across.
        if not tokens or self.model.detokenize(tokens[:1]):
            return None
        return tokens


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    different = (index for index, (a, b) in enumerate(pairs) if a != b)
    return next(different, min(len(first), len(second)))
