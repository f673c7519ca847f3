"""``pie chat``: the default model replies to each line."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import LIMIT_SECONDS, ROOT

if TYPE_CHECKING:
    from tests.cli.conftest import Pie

pytestmark = pytest.mark.usefixtures("torch_is_there")


def chat(lines: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pie_trio", "chat", *flags],
        cwd=ROOT,
        env={**os.environ, "PIE_MODEL": ""},
        input=lines,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_each_line_is_replied_to_and_a_reset_forgets_the_ones_before() -> None:
    once = chat("Hello\n")
    assert once.returncode == 0, once.stderr
    (greeting,) = once.stdout.splitlines()
    again = chat("Hello\nTell me a story.\n/reset\n\nHello\n", "--max-tokens", "40")
    first, story, last = again.stdout.splitlines()
    assert first == last == greeting
    assert story != greeting
    assert len(story) > 20


def test_options_are_those_of_the_program(pie: Pie) -> None:
    done = pie("chat", "--temperature", "warm")
    assert done.code == 2
    assert "--temperature" in done.err
