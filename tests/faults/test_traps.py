"""A guest that dies in a host call or after one, with everything of that interface open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.services import Grants
from pie_trio.config import SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import GuestFailedError, GuestTrappedError
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher

HEAD = """
import os, sys
from inferlet_py._host import get_host
from inferlet_py._host_decode import StreamValues
from inferlet_py._host_forward import OutputValues
from inferlet_py._host_processors import ProcessorSpec
if is_child:
    await sleep_forever()
host, sampler = get_host(), (0.0, 0, 1.0, 0.0, 0, 0, None)
host.create_queue(1, "")
host.alloc_kvpage(1, [1, 2, 3])
host.alloc_emb(1, [1, 2])
host.forward_text(1, [5, 6], [0, 1], [1], 0, None, [OutputValues([1], top=2)])
host.embed_txt(1, [5], [0], [1])
host.forward(1, [], [1], [2], [2], None)
"""

OPEN = {
    "messaging": "host.receive()",
    "children": "host.spawn(1, '', '{\"is_child\": true}')",
    "topics": "host.subscribe(1, 'news', True)",
    "processors": (
        "host.create_processor(1, '', ProcessorSpec(grammar=('regex', '[ab]+')))"
    ),
    "decode": (
        "host.start_stream(1, 1, StreamValues([7], [0], [3], 0, sampler, 9, [], [], "
        "False, 1))"
    ),
    "exports": "host.export_kvpage(1, [1], 'mine', False, [], None, bytes(9))",
}
"""What has to be there before the call."""

CALLS = {
    "runtime": "host.begin_span('x'), host.memory_pressure(), host.debug_query('usage')",
    "messaging": "host.send('x' * 100), host.receive()",
    "tickets": "host.wait([host.receive()], 0.0)",
    "models": "host.get_model('')",
    "queues": "host.synchronize(1), host.debug_queue(1, 'explain')",
    "allocate": "host.copy_kvpage(1, 1, 3, 0, 0, 1)",
    "forward": (
        "host.forward_text(1, [7], [2], [1], 2, None, [OutputValues([0], top=2)])"
    ),
    "input-text": "host.embed_txt(1, [6], [1], [1])",
    "input-image": "host.num_embs_needed(1, 8, 8)",
    "output-text": "host.get_next_dist(1, 2, 2)",
    "tokenize": "host.get_vocabs('')",
    "decode": "host.read_stream(1)",
    "processors": "host.allowed(1)",
    "exports": "host.list_exports(1, '')",
    "topics": "host.broadcast('news', 'x'), host.receive_broadcast(1)",
    "store": "host.store_set('a', bytes(99)), host.store_list_keys('', '', 9)",
    "http": "host.http_get(url)",
    "children": "host.send_child(1, 'x'), host.receive_child(1)",
}

CALL = """
def call():
    try:
        return {call}
    except HostError:
        pass
"""

DEATHS = {
    "unreachable after the call": "call()\nos.abort()",
    "stack in the call": (
        "sys.setrecursionlimit(10**9)\n"
        "class Deeper:\n"
        "    depth = 0\n"
        "    def __repr__(self):\n"  # a call through C: others take no stack of Wasm
        "        Deeper.depth += 1\n"
        "        if Deeper.depth % 8 == 0: call()\n"
        "        return repr(self)\n"
        "repr(Deeper())"
    ),
    "memory in the call": (
        "kept = []\n"
        "for size in (1 << 20, 1 << 14, 1 << 9):\n"
        "    try:\n"
        "        while True: kept.append(bytes(size))\n"
        "    except MemoryError: pass\n"
        "for _ in range(1000): kept.append(call())\n"
        "os.abort()"
    ),
}

GOOD = program_of(
    "async with Context() as context:\n"
    "    context.append(range(1, 17))\n"
    "    return await context.generate(max_tokens=40, stop_tokens=[]).tokens()"
)


def test_each_interface_has_a_call() -> None:
    names = {found.name for found in make_interfaces()}
    assert names == {f"pie:inferlet/{name}@0.1.0" for name in CALLS}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("interface", CALLS)
async def test_a_trap_is_an_error_of_its_own_and_leaves_nothing(
    open_fake: OpenLauncher, interface: str, death: str
) -> None:
    call = CALL.format(call=CALLS[interface])
    body = "\n".join([HEAD, OPEN.get(interface, ""), call, DEATHS[death]])
    dying = program_of(body, parameters="url: str = '', is_child: bool = False")
    quotas = Quotas(SharedLimits(), SharedLimits())
    with trio.fail_after(60):
        async with (
            open_fake(memory_bytes=48 << 20, services={"quotas": quotas}) as launcher,
            trio.open_nursery() as nursery,
        ):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            host, port = listener.socket.getsockname()
            nursery.start_soon(trio.serve_listeners, never_answer, [listener])
            grants = Grants(http=(f"{host}:{port}",))
            await launcher.compile(dying)
            instance = launcher.prepare(
                dying, {"url": f"http://{host}:{port}/"}, owner="ann", grants=grants
            )
            alone = await run_good(launcher)
            beside = list[str]()

            async def run_beside() -> None:
                beside.append(await run_good(launcher))

            async with trio.open_nursery() as both:
                both.start_soon(run_beside)
                with pytest.raises((GuestTrappedError, GuestFailedError)) as failure:
                    await instance.run()
            error = failure.value
            if isinstance(error, GuestFailedError):
                assert error.kind == "MemoryError"
            assert beside == [alone]
            assert launcher.num_running == 0
            assert len(launcher.services.topics) == 0
            assert quotas.server.is_idle
            nursery.cancel_scope.cancel()


async def run_good(launcher: Launcher) -> str:
    await launcher.compile(GOOD)
    return await launcher.prepare(GOOD, {}, owner="bob").run()


async def never_answer(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await trio.sleep_forever()
