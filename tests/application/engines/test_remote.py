"""An engine in a process of its own: what it is when it works is in the contract suites."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.config import EngineProcessConfig
from pie_trio.engine_api import Batch, ProcessorSpec
from pie_trio.errors import ConfigError, EngineError, EngineLostError
from pie_trio.inference.adapters.directory import CONFIG_FILE, WEIGHTS_FILE
from tests.application.engines.openers import refuse, start_fake
from tests.inference.contexts import Context

if TYPE_CHECKING:
    from tests.application.engines.openers import Brake

BATCH = Batch((Context([0]).feed(b"abc"),))
ROOT = Path(__file__).parents[3]


def test_an_engine_that_was_killed_is_lost_for_every_call(engine: RemoteEngine) -> None:
    engine.execute(BATCH)
    os.kill(engine.process.popen.pid, signal.SIGKILL)
    for call in (
        lambda: engine.execute(BATCH),
        lambda: engine.create_processor(1, ProcessorSpec()),
        lambda: engine.accept_tokens(1, [2]),
        lambda: engine.read_pages(np.array([0], np.int32)),
    ):
        with pytest.raises(EngineLostError, match=r"fake was lost .*SIGKILL"):
            call()
    engine.drop_processors([1])  # it has gone already
    assert engine.error is not None


def test_a_step_that_is_running_fails_when_the_process_ends(
    engine: RemoteEngine, brake: Brake
) -> None:
    brake.set()
    failures: list[EngineError] = []

    def step() -> None:
        with pytest.raises(EngineLostError) as caught:
            engine.execute(BATCH)
        failures.append(caught.value)

    thread = threading.Thread(target=step)
    thread.start()
    brake.wait_held()
    os.kill(engine.process.popen.pid, signal.SIGSEGV)
    thread.join()
    assert "SIGSEGV" in str(failures[0])


def test_a_step_that_takes_too_long_ends_the_process(
    brake: Brake, tmp_path: Path
) -> None:
    engine = start_fake(tmp_path, config=EngineProcessConfig(step_seconds=0.2))
    brake.set()
    process = engine.process
    with pytest.raises(EngineLostError, match=r"a step was not done after 0\.2 s"):
        engine.execute(BATCH)
    assert process.popen.wait(10) == -signal.SIGKILL
    engine.close()


def test_a_call_beside_a_step_does_not_wait_for_it(
    engine: RemoteEngine, brake: Brake
) -> None:
    engine.create_processor(1, ProcessorSpec(bias=((65, 1.0),)))
    brake.set()

    def step() -> None:
        with suppress(EngineError):
            engine.execute(BATCH)

    thread = threading.Thread(target=step)
    thread.start()
    brake.wait_held()
    assert engine.accept_tokens(1, [65]) == 1
    engine.create_processor(2, ProcessorSpec())
    engine.close()
    thread.join()


def test_a_process_that_stands_still_is_given_up(tmp_path: Path) -> None:
    config = EngineProcessConfig(call_seconds=0.2, step_seconds=0.2)
    engine = start_fake(tmp_path, config=config)
    with closing(engine):
        pid = engine.process.popen.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # until then it may answer
        with pytest.raises(
            EngineLostError, match=r"has_ended was not done after 0\.2 s"
        ):
            engine.has_ended(1)


def test_a_dropped_processor_is_gone_for_the_next_step(engine: RemoteEngine) -> None:
    for number in range(1, 50):
        engine.create_processor(number, ProcessorSpec())
        engine.drop_processors([number])
        batch = Batch((Context([0]).feed(b"abc", processor=number),))
        with pytest.raises(EngineError, match=f"processor {number}"):
            engine.execute(batch)


def test_what_cannot_be_opened_is_refused_with_its_reason() -> None:
    opener = partial(refuse, "there is no such model")
    with pytest.raises(ConfigError, match="there is no such model"):
        RemoteEngine("none", opener, engine_environment(1))


def test_adapters_that_are_wrong_are_refused_at_the_start(tmp_path: Path) -> None:
    opener = partial(refuse, "not reached")
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        RemoteEngine("x", opener, {}, adapters=[("a", tmp_path)])


def test_the_next_process_has_the_adapters_whose_files_are_the_same(
    engine: RemoteEngine, tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (folder / file).write_text(folder.name)
        engine.load_adapter(folder.name, folder)
    (folders[1] / WEIGHTS_FILE).write_text("other weights")
    engine.lose(engine.process, "a test")
    engine.latest.close()
    process = engine.spawn()
    engine.adopt(process, *process.wait_opened(60))
    assert engine.info.adapters == ("one",)
    engine.execute(BATCH)


def test_the_environment_is_set_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = engine_environment(3)
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["OMP_WAIT_POLICY"] == "ACTIVE", "the operator's choice goes first"
    assert found["PYTHONPATH"].startswith(str(ROOT))


ORPHAN = """
import sys
from pathlib import Path
from tests.application.engines.openers import start_fake
engine = start_fake(Path(sys.argv[1]))
print(engine.process.popen.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    [
        "sys.stdin.read()",
        "from tests.application.engines.orphans import step; step(engine)",
    ],
    ids=["idle", "in-a-step"],
)
def test_a_server_that_is_killed_leaves_no_process(
    brake: Brake, tmp_path: Path, then: str
) -> None:
    is_stepping = "step" in then
    if is_stepping:
        brake.set()
    server = subprocess.Popen(
        [sys.executable, "-c", ORPHAN.format(then=then), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    pid = int(server.stdout.readline())
    if is_stepping:
        brake.wait_held()
    worker = os.pidfd_open(pid)
    server.kill()
    server.wait()
    server.stdout.close()
    server.stdin.close()
    try:
        assert has_ended(worker, seconds=20)
    finally:
        os.close(worker)


OPENING = """
import sys
from functools import partial
from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from tests.application.engines.openers import open_never
RemoteEngine("slow", partial(open_never, sys.argv[1]), engine_environment(1))
"""


def test_a_server_that_is_killed_while_it_starts_leaves_no_process(
    brake: Brake, tmp_path: Path
) -> None:
    server = subprocess.Popen([sys.executable, "-c", OPENING, str(tmp_path)], cwd=ROOT)
    worker = os.pidfd_open(int(brake.pipe.read_text()))
    server.kill()
    server.wait()
    try:
        assert has_ended(worker, seconds=20)
    finally:
        os.close(worker)


def has_ended(pidfd: int, *, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))
