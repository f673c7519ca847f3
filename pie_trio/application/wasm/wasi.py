"""WASI as Pie grants it: what CPython needs to live, and nothing else.

wasmtime's own asynchronous WASI needs a Tokio reactor (a guest's ``time.sleep`` aborts the
process). Here a sleep is trio's, output goes to the instance's log, and there are no files, no
sockets and no arguments. What is known but not granted answers with WASI's own error code, which
the author sees as an ``OSError``; only what is unknown traps.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import trio

from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.linking import HostFunction, HostInterface
from pie_trio.application.wasm.resources import Borrow, Own
from pie_trio.application.wasm.values import (
    BOOL,
    STRING,
    U8,
    U32,
    U64,
    Array,
    Codec,
    Enum,
    List,
    Option,
    Record,
    Result,
    ResultValue,
    Tuple,
    Unit,
    Variant,
)
from pie_trio.errors import GuestTrappedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["WasiHost", "make_wasi", "wasi_versions"]

VERSION = re.compile(r"wasi:[a-z-]+/[a-z-]+@(0\.2\.\d+)")
"""Of an import. Versions 0.2 only ever add to each other."""

# Numbers of the resource types; any that differ will do.
ERROR, POLLABLE, INPUT, OUTPUT, TERMINAL_IN, TERMINAL_OUT = range(100, 106)
DESCRIPTOR, DIRECTORY, NETWORK, TCP, UDP, DATAGRAMS_IN, DATAGRAMS_OUT, ADDRESSES = (
    range(106, 114)
)

STDIN, STDOUT, STDERR = 0, 1, 2
WRITE_CHUNK_BYTES = 1 << 16
MAX_RANDOM_BYTES = 1 << 20
MAX_SLEEP_SECONDS = 1e9

BYTES = Array(U8)


class WasiHost(Protocol):
    """What WASI asks of the host object of an instance."""

    def write_output(self, stream: int, data: bytes) -> None:
        """Take what the guest wrote to its stdout (1) or stderr (2)."""
        ...

    def add_timer(self, deadline: float) -> int:
        """Keep a deadline of trio's clock until its resource is dropped; return its number."""
        ...

    def timer_deadline(self, number: int) -> float:
        """Return the deadline kept under ``number``."""
        ...

    def drop_resource(self, number: int) -> None:
        """Forget the resource of that number, if it is one that the host keeps."""
        ...


def wasi_versions(imports: Iterable[str]) -> set[str]:
    """Return the versions of WASI 0.2 among the names of imports.

    Tools that make components lag behind each other, and one component may have parts of several.
    """
    return {found[1] for name in imports if (found := VERSION.fullmatch(name))}


def make_wasi(
    get_context: Callable[[], Any],
    random_bytes: Callable[[int], bytes] = os.urandom,
    *,
    versions: Iterable[str],
) -> list[HostInterface]:
    """Return the interfaces, under each of some versions.

    Args:
        get_context: Returns the store context of the guest that is calling.
        random_bytes: Where random numbers come from.
        versions: As ``0.2.9``.
    """
    interfaces = _make_interfaces(get_context, random_bytes)
    return [
        replace(interface, name=f"{interface.name}@{version}")
        for version in versions
        for interface in interfaces
    ]


def _make_interfaces(
    get_context: Callable[[], Any], random_bytes: Callable[[int], bytes]
) -> list[HostInterface]:
    pollable = Borrow(get_context)
    own_pollable = Own(get_context, POLLABLE)
    return [
        _interface("io/error", {}, error=ERROR),
        _interface("io/poll", _poll_functions(pollable), pollable=POLLABLE),
        _interface(
            "io/streams",
            _stream_functions(get_context),
            input_stream=INPUT,
            output_stream=OUTPUT,
        ),
        *_cli(get_context),
        _interface("clocks/monotonic-clock", _monotonic_functions(own_pollable)),
        _interface(
            "clocks/wall-clock",
            {
                "now": HostFunction(
                    _wall_clock, (), Record(seconds=U64, nanoseconds=U32)
                )
            },
        ),
        _interface("random/random", _random_functions(random_bytes)),
        _interface("random/insecure-seed", _seed_functions(random_bytes)),
        _interface(
            "filesystem/types",
            {},
            descriptor=DESCRIPTOR,
            directory_entry_stream=DIRECTORY,
        ),
        _interface(
            "filesystem/preopens",
            {
                "get-directories": HostFunction(
                    _always([]), (), List(Tuple(Own(get_context, DESCRIPTOR), STRING))
                )
            },
        ),
        *_sockets(get_context),
    ]


def _interface(
    name: str, functions: dict[str, HostFunction], **resources: int
) -> HostInterface:
    kinds = {
        resource.replace("_", "-"): number for resource, number in resources.items()
    }
    return HostInterface(f"wasi:{name}", functions, kinds)


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_: value


# ---- time ----------------------------------------------------------------------------------


def _monotonic_now(_host: WasiHost) -> int:
    return int(trio.current_time() * 1e9)


def _monotonic_functions(own_pollable: Own) -> dict[str, HostFunction]:
    def subscribe_duration(host: WasiHost, nanoseconds: int) -> int:
        seconds = min(nanoseconds / 1e9, MAX_SLEEP_SECONDS)
        return host.add_timer(trio.current_time() + seconds)

    def subscribe_instant(host: WasiHost, nanoseconds: int) -> int:
        return host.add_timer(nanoseconds / 1e9)

    return {
        "now": HostFunction(_monotonic_now, (), U64),
        "subscribe-duration": HostFunction(subscribe_duration, (U64,), own_pollable),
        "subscribe-instant": HostFunction(subscribe_instant, (U64,), own_pollable),
    }


def _sleep_until(deadline: float, value: Any) -> Waiting:
    async def work() -> Any:
        await trio.sleep_until(deadline)
        return value

    return Waiting(work)


def _poll_functions(pollable: Borrow) -> dict[str, HostFunction]:
    def poll(host: WasiHost, numbers: list[int]) -> Waiting:
        if not numbers:
            raise GuestTrappedError("the program polls nothing, which would never end")
        deadlines = [host.timer_deadline(number) for number in numbers]
        first = deadlines.index(min(deadlines))
        return _sleep_until(deadlines[first], [first])

    def block(host: WasiHost, number: int) -> Waiting:
        return _sleep_until(host.timer_deadline(number), None)

    def ready(host: WasiHost, number: int) -> bool:
        return trio.current_time() >= host.timer_deadline(number)

    return {
        "poll": HostFunction(poll, (List(pollable),), List(U32), waits=True),
        "[method]pollable.block": HostFunction(block, (pollable,), waits=True),
        "[method]pollable.ready": HostFunction(ready, (pollable,), BOOL),
    }


def _wall_clock(_host: WasiHost) -> tuple[int, int]:
    return divmod(time.time_ns(), 10**9)


# ---- randomness ----------------------------------------------------------------------------


def _random_functions(
    random_bytes: Callable[[int], bytes],
) -> dict[str, HostFunction]:
    def get_bytes(_host: object, count: int) -> Any:
        if count > MAX_RANDOM_BYTES:
            raise GuestTrappedError(
                f"the program asked for {count} random bytes at once: "
                f"ask for at most {MAX_RANDOM_BYTES}"
            )
        return np.frombuffer(random_bytes(count), np.uint8)

    def get_u64(_host: object) -> int:
        return int.from_bytes(random_bytes(8), "little")

    return {
        "get-random-bytes": HostFunction(get_bytes, (U64,), BYTES),
        "get-random-u64": HostFunction(get_u64, (), U64),
    }


def _seed_functions(random_bytes: Callable[[int], bytes]) -> dict[str, HostFunction]:
    """Return what JavaScript engines seed their hash tables with."""

    def get_seed(_host: object) -> tuple[int, int]:
        data = random_bytes(16)
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")

    return {"insecure-seed": HostFunction(get_seed, (), Tuple(U64, U64))}


# ---- standard streams, environment, exit ---------------------------------------------------


def _stream_functions(get_context: Callable[[], Any]) -> dict[str, HostFunction]:
    stream = Borrow(get_context)
    failure = Variant(last_operation_failed=Own(get_context, ERROR), closed=None)
    nothing = Result(Unit(), failure)

    def write(host: WasiHost, number: int, data: Any) -> ResultValue[None]:
        host.write_output(number, data.tobytes())
        return ResultValue(is_ok=True, value=None)

    def end_of_input(*_: Any) -> ResultValue[Any]:
        return ResultValue(is_ok=False, value=("closed", None))

    done = _always(ResultValue(is_ok=True, value=None))
    room = _always(ResultValue(is_ok=True, value=WRITE_CHUNK_BYTES))
    read = HostFunction(end_of_input, (stream, U64), Result(BYTES, failure))
    return {
        "[method]input-stream.read": read,
        "[method]input-stream.blocking-read": read,
        "[method]output-stream.check-write": HostFunction(
            room, (stream,), Result(U64, failure)
        ),
        "[method]output-stream.write": HostFunction(write, (stream, BYTES), nothing),
        "[method]output-stream.blocking-write-and-flush": HostFunction(
            write, (stream, BYTES), nothing
        ),
        "[method]output-stream.flush": HostFunction(done, (stream,), nothing),
        "[method]output-stream.blocking-flush": HostFunction(done, (stream,), nothing),
    }


def _cli(get_context: Callable[[], Any]) -> list[HostInterface]:
    def exit_(_host: WasiHost, _status: Any) -> None:
        raise GuestTrappedError("the program ended its interpreter (os._exit or abort)")

    terminal_in = Option(Own(get_context, TERMINAL_IN))
    terminal_out = Option(Own(get_context, TERMINAL_OUT))
    pairs = List(Tuple(STRING, STRING))
    return [
        _interface(
            "cli/environment",
            {
                "get-environment": HostFunction(_always([]), (), pairs),
                "get-arguments": HostFunction(_always([]), (), List(STRING)),
                "initial-cwd": HostFunction(_always(None), (), Option(STRING)),
            },
        ),
        _interface(
            "cli/exit", {"exit": HostFunction(exit_, (Result(Unit(), Unit()),))}
        ),
        *(
            _interface(
                f"cli/{name}",
                {
                    f"get-{name}": HostFunction(
                        _always(number), (), Own(get_context, kind)
                    )
                },
            )
            for name, number, kind in (
                ("stdin", STDIN, INPUT),
                ("stdout", STDOUT, OUTPUT),
                ("stderr", STDERR, OUTPUT),
            )
        ),
        _interface("cli/terminal-input", {}, terminal_input=TERMINAL_IN),
        _interface("cli/terminal-output", {}, terminal_output=TERMINAL_OUT),
        *(
            _interface(
                f"cli/terminal-{name}",
                {f"get-terminal-{name}": HostFunction(_always(None), (), codec)},
            )
            for name, codec in (
                ("stdin", terminal_in),
                ("stdout", terminal_out),
                ("stderr", terminal_out),
            )
        ),
    ]


# ---- sockets: known, and denied ------------------------------------------------------------


def _sockets(get_context: Callable[[], Any]) -> list[HostInterface]:
    family = Enum("ipv4", "ipv6")
    error = Enum("unknown", "access-denied", "not-supported", "name-unresolvable")
    network = Borrow(get_context)

    def deny(ok: Codec[Any], *params: Codec[Any]) -> HostFunction:
        denied = _always(ResultValue(is_ok=False, value="access-denied"))
        return HostFunction(denied, params, Result(ok, error))

    return [
        _interface("sockets/network", {}, network=NETWORK),
        _interface(
            "sockets/instance-network",
            {
                "instance-network": HostFunction(
                    _always(0), (), Own(get_context, NETWORK)
                )
            },
        ),
        _interface("sockets/tcp", {}, tcp_socket=TCP),
        _interface(
            "sockets/udp",
            {},
            udp_socket=UDP,
            incoming_datagram_stream=DATAGRAMS_IN,
            outgoing_datagram_stream=DATAGRAMS_OUT,
        ),
        _interface(
            "sockets/tcp-create-socket",
            {"create-tcp-socket": deny(Own(get_context, TCP), family)},
        ),
        _interface(
            "sockets/udp-create-socket",
            {"create-udp-socket": deny(Own(get_context, UDP), family)},
        ),
        _interface(
            "sockets/ip-name-lookup",
            {"resolve-addresses": deny(Own(get_context, ADDRESSES), network, STRING)},
            resolve_address_stream=ADDRESSES,
        ),
    ]
