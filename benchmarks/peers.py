"""Pie against other engines: the same model, prompts and lengths, in turns within one run.

    python -m benchmarks.make_models MODELS --tokenizer DIR
    python -m benchmarks.peers --model MODELS/rand-60m --vllm VENV --openvino VENV \\
        --llama-server FILE --gguf FILE --transformers VENV

128 random tokens each, 128 new ones, greedy, ends ignored. Every engine is started first and stays up;
then in each round, at each number of requests at once, one after the other has its turn. Pie is
asked over HTTP for an inferlet that completes text, and for its OpenAI route; OpenVINO has no
server and runs in a process of its own. `docs/development.md` says how to install the others.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio
from tokenizers import Tokenizer

from benchmarks.harness import describe_machine, make_parser, spread

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

NUM_PROMPT, NUM_NEW = 128, 128
FIRST_TOKEN, LAST_TOKEN = 300, 31_000
"""Of the random prompts: no special ones."""
START_SECONDS, TURN_SECONDS = 400.0, 300.0
PROGRAM = """
from inferlet_py import Context, inferlet, send

@inferlet
async def main(tokens: list[int], max_tokens: int) -> int:
    async with Context() as context:
        context.append(tokens)
        generation = context.generate(max_tokens=max_tokens, stop_tokens=[])
        await generation.send()
        return len(generation.token_ids)
"""
STEPWISE = PROGRAM.replace("stop_tokens=[]", "stop_tokens=[], stepwise=True")
SETTLE_SECONDS = 15.0
QUIET_SECONDS = 0.5
QUIET_CORES = 0.1


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of some requests at once.

    Attributes:
        rate: Tokens a second, from the first request to the last token.
        first: Median seconds to the first token.
    """

    rate: float
    first: float


class Peer(Protocol):
    """An engine that runs.

    Attributes:
        name: In the table.
        start_seconds: From its start to its first token.
        process: Its own.
    """

    name: str
    start_seconds: float
    process: subprocess.Popen[str]

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Turn:
        """Complete these prompts at once."""
        ...


@dataclass
class HttpPeer:
    """One that answers requests with server-sent events.

    Attributes:
        port: On loopback.
        path: Of its route.
        extra: What a request says besides.
        is_pie: It is asked for an inferlet.
        tokenizer: It takes texts alone: prompts of as many tokens, but others.
    """

    name: str
    process: subprocess.Popen[str]
    port: int
    path: str
    extra: dict[str, Any] = field(default_factory=dict)
    is_pie: bool = False
    tokenizer: Tokenizer | None = None
    start_seconds: float = 0.0

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Turn:
        return trio.run(self._run, prompts, num_new)

    async def _run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Turn:
        first: list[float] = []
        counts: list[int] = []
        began = time.perf_counter()

        async def one(prompt: Sequence[int]) -> None:
            counts.append(await self._request(prompt, num_new, began, first))

        with trio.fail_after(TURN_SECONDS):
            async with trio.open_nursery() as nursery:
                for prompt in prompts:
                    nursery.start_soon(one, prompt)
        seconds = time.perf_counter() - began
        if counts != [num_new] * len(prompts):
            raise RuntimeError(f"{self.name}: {counts} tokens, not {num_new} each")
        return Turn(sum(counts) / seconds, statistics.median(first))

    async def _request(
        self, prompt: Sequence[int], num_new: int, began: float, first: list[float]
    ) -> int:
        body = json.dumps(self._body(prompt, num_new)).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Accept: text/event-stream\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        answer = bytearray()
        mark = b"event: message" if self.is_pie else b"data: {"
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(head.encode() + body)
            has_first = False
            while data := await stream.receive_some(1 << 16):
                answer += data
                if not has_first and mark in answer:
                    has_first = True
                    first.append(time.perf_counter() - began)
        text = answer.decode(errors="replace")
        if not text.startswith("HTTP/1.1 200") or not has_first:
            raise RuntimeError(f"{self.name} answered {text[:500]}")
        return self._count(text)

    def _body(self, prompt: Sequence[int], num_new: int) -> dict[str, Any]:
        if self.is_pie:
            return {"tokens": list(prompt), "max_tokens": num_new}
        asked = list(prompt) if self.tokenizer is None else self._text(prompt)
        return {
            "prompt": asked,
            "max_tokens": num_new,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }

    def _text(self, prompt: Sequence[int]) -> str:
        """Return a text of as many tokens."""
        assert self.tokenizer is not None
        text: str = self.tokenizer.decode(list(prompt) * 3)
        count = len(prompt)
        while True:
            ids = self.tokenizer.encode(text).ids
            if len(ids) <= count:
                return text
            text = self.tokenizer.decode(ids[: count if len(ids) > count + 1 else -1])

    def _count(self, text: str) -> int:
        name = "value" if self.is_pie else "completion_tokens"
        found = re.findall(rf'"{name}":\s*(\d+)', text)
        if not found:
            raise RuntimeError(
                f"{self.name} does not say how many tokens: {text[-300:]}"
            )
        return int(found[-1])


@dataclass
class OpenVino:
    """OpenVINO GenAI, in a process that has it."""

    process: subprocess.Popen[str]
    name: str = "OpenVINO GenAI"
    start_seconds: float = 0.0

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Turn:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"prompts": [list(prompt) for prompt in prompts], "num_tokens": num_new}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Turn(
            answer["num_tokens"] / answer["seconds"], statistics.median(answer["first"])
        )


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def make_prompts(count: int, num_tokens: int, rng: random.Random) -> list[list[int]]:
    """Return prompts that nobody has seen."""
    return [
        [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(num_tokens)]
        for _ in range(count)
    ]


def other_load(peers: Sequence[Peer], seconds: float, began: float) -> float:
    """Return cores that other processes have used meanwhile."""
    return max(busy_seconds() - began - sum(map(cpu_seconds, peers)), 0.0) / seconds


def busy_seconds() -> float:
    """Return the processor's time of everybody since the start of the machine."""
    values = [
        int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ]
    return (sum(values[:8]) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Wait until the machine is quiet: some engines go on for a while after their turn."""
    until = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < until:
        began, busy = time.perf_counter(), busy_seconds()
        time.sleep(QUIET_SECONDS)
        if (busy_seconds() - busy) / (time.perf_counter() - began) < QUIET_CORES:
            return


def cpu_seconds(peer: Peer) -> float:
    """Return the processor's time of all processes of a peer."""
    ticks = 0
    for pid in family(peer.process.pid):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        ticks += sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(peer: Peer) -> int:
    """Return the proportional set size of all processes of a peer."""
    total = 0
    for pid in family(peer.process.pid):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.findall(r"\nPss:\s+(\d+)", text)[0]) * 1024
    return total


def family(pid: int) -> list[int]:
    """Return a process and those that it has started."""
    found, left = [], [pid]
    while left:
        current = left.pop()
        found.append(current)
        for path in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                left += map(int, path.read_text().split())
            except OSError:
                continue
    return found


class Starter:
    """Starts engines, each with its output in a file of a folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack

    def start(
        self, name: str, command: Sequence[object], **environment: str
    ) -> subprocess.Popen[str]:
        """Start a process that is ended with the stack."""
        log = self._stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name == "openvino" else log,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._stack.callback(self._end, process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        for pid in reversed(family(process.pid)):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        process.wait()

    def wait(self, peer: Peer, began: float) -> None:
        """Wait for a peer's first token."""
        prompt = list(range(FIRST_TOKEN, FIRST_TOKEN + 8))
        while True:
            try:
                peer.run([prompt], 1)
            except (OSError, RuntimeError, ValueError, ExceptionGroup) as error:
                if peer.process.poll() is not None or (
                    time.perf_counter() - began > START_SECONDS
                ):
                    raise RuntimeError(
                        f"{peer.name} does not answer ({error}): see {self.folder}"
                    ) from error
                time.sleep(0.2)
            else:
                peer.start_seconds = time.perf_counter() - began
                return


def start_pie(starter: Starter, options: argparse.Namespace) -> list[Peer]:
    """Start Pie, once for each of its options, and deploy what it is asked for."""
    peers: list[Peer] = []
    kinds: dict[str, list[str]] = {"Pie": []}
    if options.int8:
        kinds["Pie int8"] = ["--quantize", "int8"]
    if options.go_ahead:
        kinds |= {f"Pie, ahead {said}": ["--go-ahead", said] for said in ("on", "off")}
    for name, flags in kinds.items():
        port, began = free_port(), time.perf_counter()
        process = starter.start(
            name.lower().replace(",", "").replace(" ", "-"),
            [
                *[sys.executable, "-m", "pie_trio", "serve"],
                *["--model", f"m={options.model}", "--dtype", "bfloat16"],
                *["--port", port, "--data-dir", starter.folder / name, *flags],
            ],
        )
        stream = HttpPeer(name, process, port, "/v1/programs/stream/run", is_pie=True)
        for program, text in {"stream": PROGRAM, "stepwise": STEPWISE}.items():
            trio.run(deploy, process, port, program, text)
        starter.wait(stream, began)
        peers.append(stream)
        if not flags:
            path = "/v1/programs/stepwise/run"
            stepwise = HttpPeer("Pie, stepwise", process, port, path, is_pie=True)
            starter.wait(stepwise, began)
            peers.append(stepwise)
    return peers


async def deploy(
    process: subprocess.Popen[str], port: int, name: str, text: str
) -> None:
    """Deploy a program on a server that may not listen yet."""
    from pie_trio.client import Client

    with trio.fail_after(START_SECONDS):
        while True:
            try:
                async with Client(f"http://127.0.0.1:{port}") as pie:
                    await pie.deploy(text.encode(), name)
                return
            except Exception:
                if process.poll() is not None:
                    raise
                await trio.sleep(0.1)


def start_vllm(starter: Starter, options: argparse.Namespace) -> Peer:
    """Start vLLM's build for CPUs."""
    port, began = free_port(), time.perf_counter()
    preload = [*options.preload, options.vllm / "lib" / "libiomp5.so"]
    process = starter.start(
        "vllm",
        [
            *[options.vllm / "bin" / "vllm", "serve", options.model],
            *["--served-model-name", "m", "--dtype", "bfloat16"],
            *["--max-model-len", 4096, "--max-num-seqs", 64],
            *["--host", "127.0.0.1", "--port", port],
        ],
        VLLM_CPU_KVCACHE_SPACE="4",
        VLLM_CPU_OMP_THREADS_BIND="0-1",
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        LD_PRELOAD=":".join(str(path) for path in preload if Path(path).exists()),
    )
    extra = {"model": "m", "ignore_eos": True}
    peer = HttpPeer("vLLM", process, port, "/v1/completions", extra)
    starter.wait(peer, began)
    return peer


def start_openvino(starter: Starter, options: argparse.Namespace) -> Peer:
    """Start OpenVINO GenAI; the model is converted once, beside itself."""
    converted = options.model.with_name(options.model.name + "-openvino")
    if not converted.exists():
        subprocess.run(
            [
                *[options.openvino / "bin" / "optimum-cli", "export", "openvino"],
                *["-m", options.model, "--task", "text-generation-with-past"],
                *["--weight-format", "fp16", converted],
            ],
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    began = time.perf_counter()
    script = Path(__file__).with_name("_peer_openvino.py")
    python = options.openvino / "bin" / "python"
    peer = OpenVino(starter.start("openvino", [python, script, converted, 2]))
    starter.wait(peer, began)
    return peer


def start_llama(starter: Starter, options: argparse.Namespace) -> list[Peer]:
    """Start llama.cpp's server, once a file."""
    peers: list[Peer] = []
    for path in options.gguf:
        port, began = free_port(), time.perf_counter()
        process = starter.start(
            f"llama-{path.stem}",
            [
                *[options.llama_server, "-m", path, "--host", "127.0.0.1"],
                *["--port", port, "-t", 2, "-tb", 2, "-np", 32, "-c", 16384],
                *["-b", 2048, "-ub", 512, "--kv-unified", "--no-cache-prompt"],
                *["--cache-ram", 0, "-a", "m", "--fit", "off"],
            ],
        )
        extra = {"model": "m", "ignore_eos": True}
        peer = HttpPeer(
            f"llama.cpp {path.stem}", process, port, "/v1/completions", extra
        )
        starter.wait(peer, began)
        peers.append(peer)
    return peers


def start_transformers(starter: Starter, options: argparse.Namespace) -> Peer:
    """Start transformers' own server. It cannot ignore ends; random weights rarely have one."""
    port, began = free_port(), time.perf_counter()
    process = starter.start(
        "transformers",
        [
            *[options.transformers / "bin" / "transformers", "serve", options.model],
            *["--device", "cpu", "--dtype", "bfloat16", "--host", "127.0.0.1"],
            *["--port", port, "--continuous-batching"],
            *["--cb-num-blocks", 512, "--cb-block-size", 32],
        ],
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="2",
    )
    extra = {"model": str(options.model)}
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    path = "/v1/completions"
    peer = HttpPeer("transformers", process, port, path, extra, tokenizer=tokenizer)
    starter.wait(peer, began)
    return peer


def start_all(starter: Starter, options: argparse.Namespace) -> list[Peer]:
    """Start every engine that there is, one after the other."""
    peers = start_pie(starter, options)
    if options.vllm:
        peers.append(start_vllm(starter, options))
    if options.openvino:
        peers.append(start_openvino(starter, options))
    if options.llama_server:
        peers += start_llama(starter, options)
    if options.transformers:
        peers.append(start_transformers(starter, options))
    return peers


def measure(peers: Sequence[Peer], options: argparse.Namespace) -> None:
    """Let them take turns, and print what came of it."""
    rng = random.Random(options.seed)
    turns: dict[tuple[str, int], list[Turn]] = {}
    loads: list[float] = []
    for count in options.concurrency:
        for number in range(options.rounds + 1):
            for peer in peers:
                prompts = make_prompts(count, NUM_PROMPT, rng)
                settle()
                others = busy_seconds() - sum(map(cpu_seconds, peers))
                began = time.perf_counter()
                turn = peer.run(prompts, NUM_NEW)
                seconds = time.perf_counter() - began
                if number:  # the first one warms up
                    turns.setdefault((peer.name, count), []).append(turn)
                    loads.append(other_load(peers, seconds, others))
    print(f"  cores that others used: {spread(loads)}, this client among them")
    for count in options.concurrency:
        base = statistics.median(turn.rate for turn in turns[peers[0].name, count])
        for peer in peers:
            found = turns[peer.name, count]
            rate = statistics.median(turn.rate for turn in found)
            print(
                f"  {count:3d} at once  {peer.name:28s} "
                f"tokens/s {spread([turn.rate for turn in found]):28s} "
                f"first token s {spread([turn.first for turn in found]):22s} "
                f"Pie is {base / rate:.2f} of it"
            )
    for peer in peers:
        memory = memory_bytes(peer) >> 20
        print(f"  {peer.name:28s} starts in {peer.start_seconds:6.1f} s, {memory} MiB")


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, metavar="VENV")
    parser.add_argument("--preload", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--openvino", type=Path, metavar="VENV")
    parser.add_argument("--llama-server", type=Path, metavar="FILE")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--transformers", type=Path, metavar="VENV")
    parser.add_argument("--int8", action="store_true", help="Pie with int8 too")
    parser.add_argument(
        "--go-ahead",
        action="store_true",
        help="Pie too with streams that go ahead, and that do not, whatever the default",
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # Or the engines would outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="peers-") as folder, ExitStack() as stack:
        starter = Starter(Path(folder), stack)
        measure(start_all(starter, options), options)


if __name__ == "__main__":
    main()
