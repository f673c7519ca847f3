"""An inferlet in JavaScript: the WIT is the contract, whatever language keeps it."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.errors import GuestFailedError
from tests.examples.running import EXAMPLES, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie
    from tests.examples.running import Examples

FOLDER = EXAMPLES / "javascript"
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built; never with tools that would have to be downloaded."""
    name = "componentize-js"
    found = shutil.which(FOLDER / "node_modules" / ".bin" / name) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: npm install in examples/javascript")
    built = tmp_path_factory.mktemp("javascript") / "app.wasm"
    wit = ROOT / "inferlet_py" / "wit"
    subprocess.run(
        [
            *(found, "app.js", "--wit", str(wit), "--world-name", "inferlet"),
            *("--disable", "http", "--disable", "fetch-event", "-o", str(built)),
        ],
        cwd=FOLDER,
        check=True,
        timeout=LIMIT_SECONDS,
    )
    return built


def test_javascript_says_what_python_says(
    tiny: Pie, examples: Examples, component: Path
) -> None:
    prompt = "Once upon a time"
    options: dict[str, Any] = {"prompt": prompt, "max_tokens": 40}
    run = tiny.run_sync(component, **options)
    assert "".join(map(str, run.messages)) == prompt + examples.greedy(prompt, 40)
    assert run.result == {"tokens": 40, "finish": "length"}
    assert (run.counts["steps"], run.counts["tokens"]) == (1 + 40, 3 + 40)


def test_a_text_that_ends_ends_the_javascript_too(tiny: Pie, component: Path) -> None:
    prompt = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    run = tiny.run_sync(component, prompt=prompt)
    assert run.result["finish"] == "stop-token"
    assert "Pie" in "".join(map(str, run.messages))


def test_what_the_host_refuses_is_a_failure_with_its_words(
    tiny: Pie, component: Path
) -> None:
    with pytest.raises(GuestFailedError, match="max_tokens is at least 1") as failure:
        tiny.run_sync(component, max_tokens=0)
    assert failure.value.kind == "invalid-argument"
    assert "app.js" in failure.value.traceback
