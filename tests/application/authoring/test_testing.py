"""The fixture ``pie``: scripted models, virtual time, recordings, in Wasm and natively."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.recording.files import RecordingError
from pie_trio.application.recording.player import DivergedError
from pie_trio.errors import GuestFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie

APP = """
import random
from inferlet_py import *

@inferlet
async def main(prompt: str = "Say", extra: bool = False, heat: float = 0.0) -> dict[str, object]:
    print("starts")
    async with Context() as ctx:
        await ctx.fill(prompt)
        sampler = TopP(1.0, temperature=heat, seed=random.randrange(1000)) if heat else Greedy()
        text = await ctx.generate(max_tokens=50, sampler=sampler).text()
    await send(text)
    if extra:
        await send("more")
    started = current_time()
    with move_on_after(3600) as scope:
        await sleep(7200)
    log("slept", seconds=current_time() - started)
    heard = [message async for message in messages()]
    return {"text": text, "heard": heard, "late": scope.cancelled_caught,
            "number": random.random()}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path / "app.py"


@pytest.fixture
def scripted(pie: Pie) -> Pie:
    pie.script({"Say": " hello.", "say": [" one", " two", " three"]})
    return pie


def test_a_script_is_what_the_model_says(scripted: Pie, app: Path, mode: Any) -> None:
    run = scripted.run_sync(app, mode=mode, messages=["a", "b"])
    assert run.result["text"] == " hello."
    assert run.result["heard"] == ["a", "b"]
    assert run.messages == [" hello."]
    assert run.output[0] == "starts"
    assert run.output[1].startswith("[info] slept")
    assert run.counts["tokens"] == sum(run.batch_sizes) + len("Say")


def test_time_is_virtual(scripted: Pie, app: Path, mode: Any) -> None:
    run = scripted.run_sync(app, mode=mode)
    assert run.result["late"]
    assert 3600 <= run.seconds < 3601


async def test_a_run_can_be_awaited(scripted: Pie, app: Path, mode: Any) -> None:
    run = await scripted.run(app, mode=mode, prompt="Say")
    assert run.result["text"] == " hello."


def test_sampling_takes_any_continuation_and_a_seed_the_same(
    scripted: Pie, app: Path, mode: Any
) -> None:
    def texts() -> list[str]:
        arguments = {"prompt": "I say", "heat": 1.0}
        runs = [
            scripted.run_sync(app, mode=mode, seed=i, arguments=arguments)
            for i in range(8)
        ]
        return [run.result["text"] for run in runs]

    found = texts()
    assert {" one", " two", " three"} >= set(found)
    assert len(set(found)) > 1
    assert texts() == found


def test_a_text_without_a_script_is_named(pie: Pie, app: Path, mode: Any) -> None:
    pie.script({"Hello": "x"})
    with pytest.raises(GuestFailedError, match="nothing for a text that ends in 'Say'"):
        pie.run_sync(app, mode=mode)


@pytest.mark.parametrize("replayed_in", ["wasm", "native"])
def test_a_recording_replays_without_a_model(
    scripted: Pie, app: Path, tmp_path: Path, mode: Any, replayed_in: Any
) -> None:
    file = tmp_path / "run.pie"
    source = app.read_text().replace('"number": random.random()', '"number": 1')
    app.write_text(source)
    scripted.record(file)
    recorded = scripted.run_sync(app, mode=mode, messages=["a"])
    scripted.script({"Say": " something else"})

    run = scripted.replay(app, file, mode=replayed_in)

    assert run.result == recorded.result
    assert run.messages == recorded.messages
    assert run.output == recorded.output


def test_a_replay_has_the_same_random_numbers(
    scripted: Pie, app: Path, tmp_path: Path, mode: Any
) -> None:
    scripted.record(tmp_path / "run.pie")
    recorded = scripted.run_sync(app, mode=mode, seed=7)
    assert (
        scripted.replay(app, tmp_path / "run.pie", mode=mode).result == recorded.result
    )


def test_a_replay_says_at_which_call_it_diverged(
    scripted: Pie, app: Path, tmp_path: Path, mode: Any
) -> None:
    file = tmp_path / "run.pie"
    scripted.record(file)
    scripted.run_sync(app, mode=mode)
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    calls = [name for kind, name, *_ in lines if kind == "call"]
    number = calls.index("messaging.send") + 1

    app.write_text(APP.replace("await send(text)", "await send(text + '!')"))
    with pytest.raises(
        DivergedError, match=r'recorded was messaging\.send\(" hello'
    ) as error:
        scripted.replay(app, file, mode=mode)
    assert error.value.number == number
    assert error.value.line.endswith("app.py:12, in main")


def test_a_replay_notices_a_call_that_is_missing(
    scripted: Pie, app: Path, tmp_path: Path, mode: Any
) -> None:
    file = tmp_path / "run.pie"
    app.write_text(APP.replace("    return {", "    await send('last')\n    return {"))
    scripted.record(file)
    scripted.run_sync(app, mode=mode)
    app.write_text(APP)
    with pytest.raises(DivergedError, match="now the program ends"):
        scripted.replay(app, file, mode=mode)


def test_a_program_that_fails_fails_again(
    scripted: Pie, app: Path, tmp_path: Path, mode: Any
) -> None:
    app.write_text(APP.replace("await send(text)", "raise ValueError(text)"))
    scripted.record(tmp_path / "run.pie")
    with pytest.raises(GuestFailedError, match="ValueError:  hello"):
        scripted.run_sync(app, mode=mode)
    with pytest.raises(GuestFailedError, match="ValueError:  hello"):
        scripted.replay(app, tmp_path / "run.pie", mode=mode)


@pytest.mark.parametrize("text", ["", "x", "{}", '{"format": 99}\n'])
def test_what_is_no_recording_is_refused(
    pie: Pie, app: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "bad.pie").write_text(text)
    with pytest.raises(RecordingError):
        pie.replay(app, tmp_path / "bad.pie")


FAMILY = """
from inferlet_py import *

@inferlet
async def main(role: str = "parent") -> list[object]:
    if role == "child":
        broadcast("news", "from below")
        await send(f"child has {random_number()}")
        return [current_time()]
    async with subscribe("news") as news, spawn(role="child") as child:
        heard = [(await anext(news)).content]
        said = [message async for message in child]
        return [heard, said, await child.wait()]

def random_number() -> float:
    import random
    return random.random()
"""


@pytest.mark.parametrize("recorded_in", ["wasm"])  # natively there are no children here
def test_children_and_topics_are_what_the_parent_saw_of_them(
    scripted: Pie, tmp_path: Path, recorded_in: Any, mode: Any
) -> None:
    app = tmp_path / "family.py"
    app.write_text(FAMILY)
    scripted.record(tmp_path / "run.pie")
    recorded = scripted.run_sync(app, mode=recorded_in)
    assert recorded.result[0] == ["from below"]
    assert recorded.result[1][0].startswith("child has 0.")

    run = scripted.replay(app, tmp_path / "run.pie", mode=mode)

    assert run.result == recorded.result
    assert "topics.broadcast" not in (tmp_path / "run.pie").read_text()
