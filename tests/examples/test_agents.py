"""Programs that use tools: real requests to servers of this machine, and code in a sandbox."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer

from examples import tool_server
from examples.agent_react.app import PROMPT
from pie_trio.application.authoring.testing.runs import Sandbox
from pie_trio.errors import GuestFailedError
from tests.examples.running import (
    EXAMPLES,
    LIMIT_SECONDS,
    MODELS,
    ROOT,
    open_tools,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from examples.tool_server import ToolServer
    from tests.examples.running import Examples, Run

OSLO = "The weather in Oslo is windy, 9 degrees."
LIMA = "The weather in Lima is rainy, -4 degrees."


@pytest.fixture
def server() -> Generator[ToolServer]:
    """The tools, on a port of their own."""
    with open_tools() as found:
        yield found


@pytest.fixture
def ask(examples: Examples, server: ToolServer) -> Callable[..., Run]:
    """Runs an agent that may reach the tools."""

    def run(name: str, **arguments: Any) -> Run:
        hosts = [server.url.removeprefix("http://")]
        return examples.run(name, allow_http=hosts, tools=server.url, **arguments)

    return run


def run_by_hand(*arguments: str) -> str:
    """Return what ``pie run`` prints."""
    command = [sys.executable, "-m", "pie_trio", "run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# ---- ReACT -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "calls", "answer"),
    [
        (
            "How many degrees warmer is Paris than Oslo?",
            ["weather", "weather", "calculator"],
            "Paris is 7 degrees warmer than Oslo.",
        ),
        (
            'Look up "kelmo" and add 5 to it.',
            ["lookup", "calculator"],
            "The result is 47.",
        ),
        (
            'The value of "home" is a city. What is the weather there?',
            ["lookup", "weather"],
            OSLO,
        ),
        (
            'What is the value of "nolzi"?',
            ["lookup"],
            'There is no value for "nolzi".',
        ),
    ],
    ids=["warmer", "sum", "chain", "missing"],
)
def test_a_react_agent_answers_by_what_tools_said(
    ask: Callable[..., Run],
    server: ToolServer,
    question: str,
    calls: list[str],
    answer: str,
) -> None:
    run = ask("agent_react", question=question)
    assert run.result == answer
    assert [name for name, *_ in server.calls] == calls


def test_a_react_agent_reads_nothing_twice_however_often_it_calls(
    ask: Callable[..., Run],
) -> None:
    question = "How many degrees warmer is Paris than Oslo?"
    kept = ask("agent_react", question=question)
    again = ask("agent_react", question=question, restart=True)
    assert again.text == kept.text
    assert again.use.steps == kept.use.steps
    tokenizer = Tokenizer.from_file(str(MODELS / "pie_tiny" / "tokenizer.json"))
    text = PROMPT.format(question) + kept.text
    # Texts that are put together may take a token or two more.
    assert len(tokenizer.encode(text)) <= kept.use.tokens + 1
    assert kept.use.tokens <= len(tokenizer.encode(text)) + 8
    assert again.use.tokens > 2.5 * kept.use.tokens


def test_a_react_agent_reaches_nothing_that_was_not_allowed(
    examples: Examples, server: ToolServer
) -> None:
    with pytest.raises(GuestFailedError, match="--allow-http"):
        examples.run("agent_react", tools=server.url)
    assert server.calls == []


# ---- code --------------------------------------------------------------------------------

ACTS = """
import acts
from inferlet_py import inferlet

@inferlet
async def main(act: str = "", code: str = "") -> str:
    return await acts.run(act, 1.0) if act else await acts.main(code=code)
"""
"""Runs code as the agent does, which launches this program as it does itself."""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the average of 31, 4, 15, 92?", "The answer is 35.5."),
        ('What is "kelmo" backwards?', "The answer is omlek."),
        ("What is the sum of 1 to 100?", "The answer is 5050."),
        ("What is 4821 to the power of 3?", "The answer is 112049879661."),
    ],
)
def test_code_of_the_model_is_run_and_its_output_answered(
    examples: Examples, question: str, answer: str
) -> None:
    run = examples.run("agent_codeact", question=question)
    assert run.result == answer
    assert "```python\n" in run.text


@pytest.fixture
def act(tmp_path: Path, preemptive: Examples) -> Callable[[str], str]:
    """Runs code as the agent does."""
    (tmp_path / "app.py").write_text(ACTS)
    text = (EXAMPLES / "agent_codeact" / "app.py").read_text()
    (tmp_path / "acts.py").write_text(text)

    def run(code: str) -> str:
        return str(preemptive.run(str(tmp_path), act=code).result)

    return run


@pytest.fixture
def preemptive(examples: Examples) -> Generator[Examples]:
    """Runs examples in a sandbox that preempts who computes without end."""
    sandbox = Sandbox(slice_ticks=1)
    try:
        yield examples.inside(sandbox)
    finally:
        sandbox.close()


def test_code_has_a_time_limit_and_nothing_of_the_host(
    act: Callable[[str], str],
) -> None:
    assert act("print(6 * 7)") == "42"
    assert act("while True: pass") == "stopped after 1 seconds"
    # One operation, which no trace function would interrupt.
    assert act("12 ** 76543210") == "stopped after 1 seconds"
    assert "NameError" in act("print(answer)")
    assert "SyntaxError" in act("numbers = [1 to 9]")
    assert "FileNotFoundError" in act("open('/etc/passwd')")
    assert "PermissionError" in act("import socket; socket.socket()")
    # What the agent knows is in another inferlet.
    assert "NameError" in act("print(run)")
    assert len(act("print('a' * 1_000_000)")) == 1000


@pytest.mark.usefixtures("torch_is_there")
def test_endless_code_is_ended_natively_too_and_the_model_is_told() -> None:
    question = "What is 12 to the power of 7654321?"
    options = ("--question", question, "--seconds", "0.5")
    printed = run_by_hand("--native", "examples/agent_codeact", *options)
    assert "print(12 ** 7654321)\n```\nstopped after 0.5 seconds\n" in printed
    assert "The answer is stopped" in printed


# ---- swarm -------------------------------------------------------------------------------

SWARM = {
    "What is the weather in Oslo?": ("weather", OSLO),
    "How much is 3 * 9?": ("calculator", "The result is 27."),
    'What is the value of "kelmo"?': ("lookup", 'The value of "kelmo" is 42.'),
    "Find all items with red.": ("search", "I found red kite, red hat."),
}


def test_the_agent_with_the_right_tool_answers_and_all_of_them_share_batches(
    ask: Callable[..., Run], server: ToolServer
) -> None:
    run = ask("agent_swarm", questions=list(SWARM))
    assert run.result == [answer for _, answer in SWARM.values()]
    assert sorted(run.text.splitlines()) == sorted(
        f"{agent}: {answer}" for agent, answer in SWARM.values()
    )
    called = [name for name, *_ in server.calls]
    assert sorted(called) == sorted(agent for agent, _ in SWARM.values())
    # Sixteen answers of four inferlets: alone, each forward would be a step.
    assert run.use.forwards > 2.5 * run.use.steps


@pytest.mark.usefixtures("torch_is_there")
def test_a_swarm_does_the_same_natively(server: ToolServer) -> None:
    host = server.url.removeprefix("http://")
    program = ("examples/agent_swarm", "--tools", server.url)
    *_, last = run_by_hand("--native", "--allow-http", host, *program).splitlines()
    assert json.loads(last)[0] == OSLO


# ---- function calls ----------------------------------------------------------------------

ANSWERS = [
    f"{OSLO} The result is 84. 12 km is 12000 m.",
    f'The value of "red_kite" is 17. I found red kite, red hat. {LIMA}',
]
CALLS = ["calculator", "convert", "lookup", "search", "weather", "weather"]


@pytest.mark.parametrize(
    "switches",
    [
        dict(zip(("cache", "overlap", "drop"), values, strict=True))
        for values in product((False, True), repeat=3)
    ],
    ids=lambda switches: "+".join(n for n, is_on in switches.items() if is_on) or "-",
)
def test_no_optimisation_changes_an_answer(
    ask: Callable[..., Run], server: ToolServer, switches: dict[str, bool]
) -> None:
    run = ask("function_calling_agent", **switches)
    assert run.result == ANSWERS
    assert sorted(name for name, *_ in server.calls) == CALLS


def test_documentation_that_is_kept_is_read_once_and_by_nobody_after_that(
    examples: Examples, server: ToolServer
) -> None:
    runs = {
        is_kept: examples.run_each(
            "function_calling_agent",
            [{"tools": server.url, "cache": is_kept}] * 2,
            allow_http=[server.url.removeprefix("http://")],
        )
        for is_kept in (False, True)
    }
    plain, again, first, second = (
        run.use.tokens for n in (False, True) for run in runs[n]
    )
    num_read = first - second
    assert plain == again == first + num_read
    assert num_read > 90


def test_calls_that_overlap_run_while_the_model_writes_the_next(
    ask: Callable[..., Run], server: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ask("function_calling_agent")
    assert [count_steps(plain, call) for call in server.calls] == [0] * 6
    server.calls.clear()
    # None is answered before all three of its question have been made.
    together = threading.Barrier(3)
    monkeypatch.setattr(server, "pause", lambda: together.wait(LIMIT_SECONDS))
    overlapped = ask("function_calling_agent", overlap=True)
    counts = sorted(count_steps(overlapped, call) for call in server.calls)
    assert counts[2] > 10  # while the first two calls of each question ran
    assert overlapped.use.steps == plain.use.steps


def count_steps(run: Run, call: tuple[str, float, float]) -> int:
    """Return how many steps began while a tool worked."""
    _, began, ended = call
    return run.use.steps_between(began, ended)


def test_documentation_that_is_dropped_makes_room(ask: Callable[..., Run]) -> None:
    plain = ask("function_calling_agent").use
    dropped = ask("function_calling_agent", drop=True).use
    assert dropped.tokens == plain.tokens
    assert dropped.peak_pages <= plain.peak_pages - 4


# ---- tools that take their time ----------------------------------------------------------


def test_an_answer_is_written_while_the_tool_works(
    examples: Examples, server: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fifteen steps take far less than the second call, however busy the machine is.
    delays = iter([0.0, 3.0, 0.0])
    monkeypatch.setattr(server, "pause", lambda: time.sleep(next(delays)))
    given = {"tools": server.url}
    first, second, patient = examples.run_each(
        "async_tools",
        [given, given, {**given, "guess": False}],
        allow_http=[server.url.removeprefix("http://")],
    )
    assert [run.result for run in (first, second, patient)] == [
        {"text": OSLO, "was_guessed": was_guessed}
        for was_guessed in (False, True, False)
    ]
    after = [
        run.use.steps_between(call[2], math.inf)
        for run, call in zip((first, second, patient), server.calls, strict=True)
    ]
    assert after[0] == after[2] > 10
    assert after[1] == 0
    assert second.use.steps == first.use.steps


def test_a_guess_that_was_wrong_is_not_told(
    examples: Examples, server: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    degrees = iter([4, 5, 5])

    def weather(_city: str) -> dict[str, object]:
        return {"sky": "sunny", "degrees": next(degrees)}

    monkeypatch.setitem(tool_server.TOOLS, "weather", weather)
    runs = examples.run_each(
        "async_tools",
        [{"tools": server.url}] * 3,
        allow_http=[server.url.removeprefix("http://")],
    )
    found = [
        (re.findall(r"\d", r.result["text"]), r.result["was_guessed"]) for r in runs
    ]
    assert found == [(["4"], False), (["5"], False), (["5"], True)]


# ---- reflexion ---------------------------------------------------------------------------


def test_what_was_learned_from_a_failure_makes_the_next_try_better(
    examples: Examples,
) -> None:
    run = examples.run("reflexion")
    assert run.result == 4
    assert [line[:2] for line in run.text.splitlines() if line[0].isdigit()] == [
        *("1.", "2.", "3.", "4.")
    ]
    for name, city in (("Ben", "Lima"), ("Tom", "Cairo"), ("Lily", "Dublin")):
        assert f"   {name} lives in {city}.\n" in run.text
    assert run.use.forwards > 1.5 * run.use.steps  # letters are written together


def test_without_reflection_every_try_fails_alike(examples: Examples) -> None:
    with pytest.raises(GuestFailedError, match="after 3 tries"):
        examples.run("reflexion", reflection=False, max_tries=3)


@pytest.mark.parametrize(
    "name", ["agent_react", "function_calling_agent", "async_tools", "reflexion"]
)
def test_an_agent_does_the_same_natively(
    examples: Examples, ask: Callable[..., Run], server: ToolServer, name: str
) -> None:
    if name == "reflexion":
        assert examples.run_natively(name).result == 4
        return
    hosts = [server.url.removeprefix("http://")]
    outcome = examples.run_natively(name, allow_http=hosts, tools=server.url)
    assert outcome.result == ask(name).result
