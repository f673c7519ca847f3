"""Chats and their templates in Wasm, over a fake engine; with pie-tiny in tests/cli/test_chats.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.host.tokenize import MAX_CHAT_CHARACTERS
from pie_trio.errors import GuestFailedError
from pie_trio.inference.fake import FakeEngine
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 120

TEMPLATES = {
    "default": "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system messages, please') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "tool_use": "{{ tools | map(attribute='function') | map(attribute='name') | join(',') }}"
    "{{ mood }}",
}


async def run(launcher: Launcher, program: SourceProgram) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, {}).run())


async def test_a_program_renders_chats_by_the_template_of_its_model(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "model = get_model()\n"
        "chat = [{'role': 'user', 'content': 'h\\u00e9'}]\n"
        "tools = [{'type': 'function', 'function': {'name': n}} for n in 'ab']\n"
        "return [model.render_chat(chat),\n"
        "        model.render_chat(chat, add_generation_prompt=False),\n"
        "        model.render_chat(chat, tools=tools, mood='!'),\n"
        "        model.render_chat(chat, tools=tools, template='default')]"
    )
    async with open_fake(engine=FakeEngine(chat_templates=TEMPLATES)) as launcher:
        assert await run(launcher, program) == [
            "<bos><user>hé<eos><assistant>",
            "<bos><user>hé<eos>",
            "a,b!",
            "<bos><user>hé<eos><assistant>",
        ]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            "model.render_chat([{'role': 'system', 'content': ''}])",
            "BadArgumentError",
            "the chat template failed: no system messages, please",
        ),
        (
            "model.render_chat(['hello'])",
            "BadArgumentError",
            'a message should be an object with role and content, but one is "hello"',
        ),
        (
            "model.render_chat([], template='other')",
            "NotFoundError",
            "fake has no chat template 'other': it has default, tool_use",
        ),
        (
            f"model.render_chat([{{'role': 'user', 'content': 'x' * {MAX_CHAT_CHARACTERS}}}])",
            "LimitError",
            f"but {MAX_CHAT_CHARACTERS} are the limit: leave the oldest messages out",
        ),
    ],
)
async def test_a_chat_that_cannot_be_rendered_is_the_authors_error(
    open_fake: OpenLauncher, call: str, kind: str, message: str
) -> None:
    program = program_of(f"model = get_model()\n{call}")
    async with open_fake(engine=FakeEngine(chat_templates=TEMPLATES)) as launcher:
        with pytest.raises(GuestFailedError) as caught:
            await run(launcher, program)
    assert caught.value.kind == kind
    assert message in str(caught.value)


async def test_a_model_without_a_template_says_what_to_do(
    open_fake: OpenLauncher,
) -> None:
    program = program_of("get_model().render_chat([])")
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match=r"without a chat template: write"):
            await run(launcher, program)


async def test_an_endless_template_does_not_stop_others(
    open_fake: OpenLauncher,
) -> None:
    loop = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    stuck = program_of("get_model().render_chat([])")
    other = program_of("await sleep(0.05)\nreturn 'done'")
    engine = FakeEngine(chat_templates={"default": loop})
    async with open_fake(engine=engine) as launcher:
        with trio.fail_after(LIMIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(launcher.prepare(stuck, {}).run)
                assert json.loads(await launcher.prepare(other, {}).run()) == "done"
                nursery.cancel_scope.cancel()


async def test_a_chat_keeps_what_the_model_has_seen(open_fake: OpenLauncher) -> None:
    template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    program = program_of(
        "async with Chat() as chat:\n"
        "    first = await chat.user('Hi').reply(max_tokens=5).text()\n"
        "    seen = len(chat.context)\n"
        "    second = await chat.user('Go').reply(max_tokens=5).text()\n"
        "    return [len(first) > 0, seen, len(chat.messages), chat.count_tokens() > seen]"
    )
    engine = FakeEngine(chat_templates={"default": template})
    async with open_fake(engine=engine) as launcher:
        found = await run(launcher, program)
    assert found[0]
    assert found[2:] == [4, True]


async def test_what_is_logged_and_printed_is_in_the_log(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "import logging\n"
        "logging.getLogger('app').info('one %d', 1)\n"
        "print('two')\n"
        "logging.getLogger('app').error('three')\n"
    )
    lines: list[Any] = []
    async with open_fake() as launcher:
        with trio.fail_after(LIMIT_SECONDS):
            await launcher.prepare(program, {}, on_log=lines.append).run()
    assert [(line.source, line.text) for line in lines] == [
        ("info", "app: one 1"),
        ("stdout", "two"),
        ("error", "app: three"),
    ]
    assert lines[0].at <= lines[1].at <= lines[2].at
