"""Chat templates give what ``transformers`` makes of them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.chat.templates import (
    TemplateFailedError,
    TooLongError,
    render_template,
)
from pie_trio.inference.chat_files import read_chat_templates
from tests.application.chat.published import CHATS, SPECIAL_TOKENS, TEMPLATES, TOOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOW = datetime(2026, 3, 9, 7, 5)
PIE_TINY = Path(__file__).parents[3] / "pie_trio/models/pie_tiny"

Variables = dict[str, Any]


def render(template: str, variables: Mapping[str, Any] | None = None) -> str:
    return render_template(template, variables or {}, now=NOW, max_characters=1 << 20)


def outcome(call: Callable[[], str]) -> tuple[str, str]:
    """Return what a call rendered, or that it failed, with its words."""
    try:
        return "text", call()
    except Exception as error:  # noqa: BLE001 - whatever the reference raises
        # Ours adds the line, and says more of syntax.
        return "error", str(error).partition(", in line")[0]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the reference for templates")


@pytest.mark.parametrize("has_tools", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_gives_what_transformers_makes_of_it(
    transformers: Any, template: str, chat: str, has_tools: bool
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    more: Variables = {**SPECIAL_TOKENS, "date_string": "26 Jul 2024"}
    for adds_prompt in (False, True):
        variables: Variables = {
            **more,
            "messages": CHATS[chat],
            "tools": TOOLS if has_tools else None,
            "documents": [{"title": "a", "text": "b"}],
            "add_generation_prompt": adds_prompt,
        }
        expected = outcome(
            lambda values=variables: render_jinja_template(  # type: ignore[misc]
                conversations=[values["messages"]],
                tools=values["tools"],
                documents=values["documents"],
                chat_template=TEMPLATES[template],
                add_generation_prompt=values["add_generation_prompt"],
                **more,
            )[0][0]
        )
        found = outcome(lambda values=variables: render(TEMPLATES[template], values))  # type: ignore[misc]
        assert found == expected


@pytest.mark.parametrize("has_tools", [False, True])
@pytest.mark.parametrize("chat", [name for name in CHATS if CHATS[name]])
@pytest.mark.parametrize("model", ["pie-tiny", "tokenizers/qwen3"])
def test_a_shipped_template_gives_what_its_tokenizer_makes_of_it(
    transformers: Any,
    request: pytest.FixtureRequest,
    model: str,
    chat: str,
    has_tools: bool,
) -> None:
    folder = PIE_TINY
    if model != "pie-tiny":
        folder = request.getfixturevalue("shared_directory") / model
    if not (folder / "tokenizer_config.json").is_file():
        pytest.skip(f"there is no tokenizer in {folder}")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    source = read_chat_templates(folder)
    for adds_prompt in (False, True):
        expected = tokenizer.apply_chat_template(
            CHATS[chat],
            tools=TOOLS if has_tools else None,
            add_generation_prompt=adds_prompt,
            tokenize=False,
        )
        found = render(
            source.by_name["default"],
            {
                **source.special_tokens,
                "documents": None,
                "messages": CHATS[chat],
                "tools": TOOLS if has_tools else None,
                "add_generation_prompt": adds_prompt,
            },
        )
        assert found == expected


def test_the_shapes_give_the_prompts_that_their_models_know() -> None:
    """Two by hand, in case that both sides are wrong together."""
    variables: Variables = {
        **SPECIAL_TOKENS,
        "messages": CHATS["turns"],
        "tools": None,
        "add_generation_prompt": True,
        "date_string": "26 Jul 2024",
    }
    assert render(TEMPLATES["llama-3"], variables) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<think>a\n</think>\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(TEMPLATES["gemma"], variables) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
        "<think>a\n</think>\nHello<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_a_template_refuses_in_its_own_words() -> None:
    with pytest.raises(TemplateFailedError, match=r"^System role not supported$"):
        render(TEMPLATES["gemma"], {"bos_token": "", "messages": CHATS["system"]})


def test_the_clock_is_the_one_that_is_given() -> None:
    assert render("{{ strftime_now('%d %b %Y %H:%M') }}") == "09 Mar 2026 07:05"


def test_json_keeps_its_order_and_its_letters() -> None:
    value = {"z": "é<", "a": {"y": 1, "b": [True, None]}}
    assert render("{{ v | tojson }}", {"v": value}) == (
        '{"z": "é<", "a": {"y": 1, "b": [true, null]}}'
    )
    for options in ("indent=2", "separators=(',', ':')", "sort_keys=true"):
        python = options.replace("true", "True")
        expected = eval(f"json.dumps(value, ensure_ascii=False, {python})")
        found = render(f"{{{{ v | tojson({options}) }}}}", {"v": value})
        assert found == expected
    assert json.loads(render("{{ v | tojson }}", {"v": value})) == value


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.mro() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% for x in messages %}{{ loop.__class__ }}{% endfor %}",
        "{{ (messages | attr('__class__')) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_the_sandbox_has_no_way_out(template: str) -> None:
    try:
        text = render(template, {"messages": ["m"]})
    except TemplateFailedError:
        return
    assert text == "", "what is not there is undefined, and renders to nothing"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", r"no template of Jinja: .*, in line 1"),
        ("a\n\n{{ x.y.z }}", r"'x' is undefined, in line 3 of the template"),
        ("{{ 1 / 0 }}", r"division by zero, in line 1 of the template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ range(10**9) }}", "Range too big"),
    ],
)
def test_an_error_says_where_it_is(template: str, message: str) -> None:
    with pytest.raises(TemplateFailedError, match=message):
        render(template)


def test_a_text_that_grows_too_long_is_given_up() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(TooLongError):
        render_template(endless, {}, now=NOW, max_characters=1000)
