"""The process that renders chats: what it answers, and that nothing stops it for long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from pie_trio.application.chat.renderer import (
    ChatRenderer,
    RenderRequest,
    open_chat_renderer,
)
from pie_trio.errors import BadArgumentError, LimitError

LIMIT_SECONDS = 100
ECHO = RenderRequest("{{ messages[0].content }}", '[{"role": "user", "content": "hé"}]')


async def test_chats_are_rendered_one_after_the_other_by_one_process() -> None:
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            assert renderer.num_started == 0
            texts: list[str] = []

            async def render(number: int) -> None:
                variables = f'{{"n": {number}}}'
                request = replace(
                    ECHO, template=ECHO.template + "{{ n }}", variables=variables
                )
                texts.append(await renderer.render(request))

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(render, number)
            assert sorted(texts) == [f"hé{number}" for number in range(5)]
            assert renderer.num_started == 1


async def test_what_a_template_reads_is_there() -> None:
    request = RenderRequest(
        "{{ bos_token }}{{ tools }}{{ documents }}{{ extra.a }}{{ add_generation_prompt }}"
        "{{ strftime_now('%Y') }}",
        variables='{"extra": {"a": 1}}',
        special_tokens={"bos_token": "<s>"},
        add_generation_prompt=True,
        now="2031-01-01T00:00:00",
    )
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            assert await renderer.render(request) == "<s>NoneNone1True2031"
            request = replace(request, tools='["x"]', template="{{ tools[0] }}")
            assert await renderer.render(request) == "x"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(ECHO, template="{{ raise_exception('no') }}"), "template failed: no$"),
        (replace(ECHO, messages="["), r"messages should be JSON .*: \["),
        (replace(ECHO, messages="{}"), r"messages should be a list, got \{\}"),
        (
            replace(ECHO, messages='["hello"]'),
            'a message should be an object .* "hello"',
        ),
        (replace(ECHO, messages="[{}]"), "a message should be an object with role"),
        (replace(ECHO, messages="[" * 100_000), r"messages should be JSON .*\.\.\.$"),
        (replace(ECHO, tools="{}"), r"tools should be a list, got \{\}"),
        (replace(ECHO, variables="[]"), r"variables should be an object, got \[\]"),
    ],
)
async def test_what_is_no_chat_is_refused(
    request_: RenderRequest, message: str
) -> None:
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            with pytest.raises(BadArgumentError, match=message):
                await renderer.render(request_)
            assert await renderer.render(ECHO) == "hé"
            assert renderer.num_started == 1


async def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    request = replace(ECHO, messages='[{"role": "user", "content": "a\\ud800"}]')
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            assert await renderer.render(request) == "a?"


ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
)


async def test_a_template_without_an_end_is_ended() -> None:
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer(render_seconds=0.2) as renderer:
            with pytest.raises(LimitError, match=r"took longer than 0\.2 s"):
                await renderer.render(replace(ECHO, template=ENDLESS))
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            assert await renderer.render(ECHO) == "hé"
            with trio.move_on_after(0.2):
                await renderer.render(replace(ECHO, template=ENDLESS))
            assert await renderer.render(ECHO) == "hé", "not the answer of the other"
            assert renderer.num_started == 2


@pytest.mark.parametrize(
    "template",
    [
        "{% set x = 'a' * 10 ** 10 %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'x'.ljust(10 ** 11) }}",
    ],
)
async def test_a_template_cannot_take_all_memory(template: str) -> None:
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer(render_seconds=30) as renderer:
            with pytest.raises((LimitError, BadArgumentError), match=r"[Mm]emory"):
                await renderer.render(replace(ECHO, template=template))
            assert await renderer.render(ECHO) == "hé"


async def test_a_text_that_is_too_long_is_refused() -> None:
    request = replace(ECHO, template="{{ 'x' * 101 }}", max_characters=100)
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            with pytest.raises(LimitError, match="more than 100 characters"):
                await renderer.render(request)


async def test_a_process_that_was_ended_is_replaced() -> None:
    with trio.fail_after(LIMIT_SECONDS):
        async with open_chat_renderer() as renderer:
            assert await renderer.render(ECHO) == "hé"
            process = process_of(renderer)
            process.kill()
            await process.wait()
            with pytest.raises(LimitError):
                await renderer.render(ECHO)
            assert await renderer.render(ECHO) == "hé"
        assert process_of(renderer, is_there=False) is None


def process_of(renderer: ChatRenderer, *, is_there: bool = True) -> trio.Process:
    process = renderer._process
    assert (process is not None) == is_there
    return process  # type: ignore[return-value]
