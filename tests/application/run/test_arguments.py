"""Flags of the command line become a program's arguments."""

from __future__ import annotations

from typing import Any, Literal, Optional

import pytest

from inferlet_py import Inferlet, inferlet
from pie_trio.application.run.arguments import parse_program_arguments


def parse(program: Inferlet[..., Any], *flags: str) -> dict[str, Any]:
    return parse_program_arguments(program.describe(), flags, program="pie run x")


@inferlet
async def optional(
    words: list[int] | None = None,
    kind: Optional[Literal["a", "b"]] = None,  # noqa: UP045 - authors write it
    loud: bool | None = None,
    heat: float | None = None,
    either: int | str | None = None,
    gaps: list[int | None] | None = None,
) -> None: ...


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {}),
        ("--words 1 2", {"words": [1, 2]}),
        ("--kind b", {"kind": "b"}),
        ("--no-loud", {"loud": False}),
        ("--heat 2", {"heat": 2.0}),
        ("--either 3", {"either": 3}),
        ("--gaps 1 2", {"gaps": [1, 2]}),
    ],
)
def test_an_optional_parameter_takes_what_it_takes_besides_null(
    flags: str, expected: dict[str, Any]
) -> None:
    assert parse(optional, *flags.split()) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kind c", "invalid choice: 'c'"),
        ("--words x", "invalid integer value: 'x'"),
        ("--either x", "invalid JSON value: 'x'"),
    ],
)
def test_a_wrong_value_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(optional, *flags.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_parameter_named_help_is_the_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @inferlet
    async def helped(help: str = "") -> None:  # noqa: A002
        """Be helped."""

    assert parse(helped, "--help", "me") == {"help": "me"}
    with pytest.raises(SystemExit) as error:
        parse(helped, "-h")
    assert error.value.code == 0
    assert "--help TEXT" in capsys.readouterr().out
