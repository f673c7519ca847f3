"""What programs do with messages, topics, the store, requests and children, in Wasm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.services import Grants, Outgoing
from pie_trio.errors import GuestFailedError
from tests.application.conftest import OpenLauncher, program_of
from tests.application.outgoing.servers import NO_TLS, Reply, listen, open_server

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Instance, Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 120
PLAIN = {"outgoing": Outgoing(make_ssl_context=lambda: NO_TLS)}


async def run(launcher: Launcher, program: SourceProgram, **details: Any) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        result = json.loads(await launcher.prepare(program, {}, **details).run())
    assert launcher.num_running == 0
    return result


async def run_with(instance: Instance, *messages: str | bytes) -> Any:
    """Run an instance whose client sends some messages and then no more."""

    async def feed() -> None:
        for message in messages:
            await instance.session.inbox.put(message)
        instance.session.inbox.end()

    with trio.fail_after(LIMIT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            return json.loads(await instance.run())


async def test_messages_of_the_client_are_received_to_their_end(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "first = await receive()\n"
        "rest = [m if isinstance(m, str) else list(m) async for m in messages()]\n"
        "return [first, rest, await receive()]"
    )
    async with open_fake(max_unread=2) as launcher:
        instance = launcher.prepare(program, {})
        result = await run_with(instance, "a", "é", b"\x00\xff", "d", "e")
    assert result == ["a", ["é", [0, 255], "d", "e"], None]


async def test_branches_that_receive_get_one_message_each_and_none_is_lost(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "with move_on_after(0): await receive()\n"
        "found = []\n"
        "async def take(): found.append(await receive())\n"
        "async with open_nursery() as nursery:\n"
        "    for _ in range(3): nursery.start_soon(take)\n"
        "return sorted(found)"
    )
    async with open_fake() as launcher:
        instance = launcher.prepare(program, {})
        assert await run_with(instance, "a", "b", "c") == ["a", "b", "c"]


async def test_two_instances_talk_by_topics(open_fake: OpenLauncher) -> None:
    listener = program_of(
        "heard = []\n"
        "async with subscribe('news') as subscription:\n"
        "    log('listening')\n"
        "    async for message in subscription:\n"
        "        if message.content == b'end': return heard\n"
        "        heard.append([message.content, message.num_missed])"
    )
    speaker = program_of(
        "return [broadcast('news', 'one'), broadcast('news', 'two'), "
        "broadcast('news', b'end'), broadcast('none', '')]"
    )
    async with open_fake() as launcher:
        listening = trio.Event()
        found: list[Any] = []

        async def listen_to_news() -> None:
            instance = launcher.prepare(listener, {}, on_log=lambda _: listening.set())
            found.append(json.loads(await instance.run()))

        with trio.fail_after(LIMIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen_to_news)
                await listening.wait()
                told = json.loads(await launcher.prepare(speaker, {}).run())
    assert told == [1, 1, 1, 0]
    assert found == [[["one", 0], ["two", 0]]]


async def test_the_store_survives_the_server(
    open_fake: OpenLauncher, tmp_path: Path
) -> None:
    services = {"store_path": tmp_path / "store.db"}
    first = program_of(
        "for i in range(3): await store.set(f'k/{i}', str(i))\n"
        "await store.set('other', bytes([0, 255]))\n"
        "return [await store.delete('k/0'), await store.delete('k/0')]"
    )
    second = program_of(
        "keys = [await store.list_keys('k/'), await store.list_keys(limit=1), "
        "await store.list_keys(after='k/1')]\n"
        "values = [await store.get_text('k/1'), list(await store.get('other')), "
        "await store.get('k/0')]\n"
        "return [keys, values, await store.exists('k/0'), await store.exists('k/1')]"
    )
    async with open_fake(services=services) as launcher:
        assert await run(launcher, first) == [True, False]
    async with open_fake(services=services) as launcher:
        assert await run(launcher, second) == [
            [["k/1", "k/2"], ["k/1"], ["k/2", "other"]],
            ["1", [0, 255], None],
            False,
            True,
        ]


async def test_requests_in_branches_run_at_the_same_time(
    open_fake: OpenLauncher,
) -> None:
    arrived = trio.Event()
    connections: list[int] = []

    async def together(stream: trio.SocketStream) -> None:
        """Answer only once three requests are there."""
        await stream.receive_some()
        connections.append(1)
        if len(connections) == 3:
            arrived.set()
        await arrived.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    program = program_of(
        "found = []\n"
        "async def get(): found.append((await http_get(url)).text())\n"
        "async with open_nursery() as nursery:\n"
        "    for _ in range(3): nursery.start_soon(get)\n"
        "return found",
        parameters="url: str",
    )
    async with listen(together) as port, open_fake(services=PLAIN) as launcher:
        grants = Grants(http=(f"127.0.0.1:{port}",))
        instance = launcher.prepare(
            program, {"url": f"http://127.0.0.1:{port}/"}, grants=grants
        )
        with trio.fail_after(LIMIT_SECONDS):
            assert json.loads(await instance.run()) == ["ok"] * 3


async def test_an_answer_is_read_as_text_or_json(open_fake: OpenLauncher) -> None:
    def reply(seen: Any) -> Reply:
        kind = seen.headers.get("content-type", "text/plain; charset=latin-1")
        body = seen.body or "é".encode("latin-1")
        return Reply(201, (("content-type", kind),), body)

    program = program_of(
        "plain = await http_get(url)\n"
        "posted = await http_post(url, json={'a': 'ü'}, headers={'x-a': 'b'})\n"
        "put = await http_request('put', url, body='text')\n"
        "return [plain.status, plain.text(), plain.is_success, posted.json(), "
        "posted.header('Content-Type'), put.text(), put.url == url]",
        parameters="url: str",
    )
    async with open_server(reply) as server, open_fake(services=PLAIN) as launcher:
        grants = Grants(http=(f"127.0.0.1:{server.port}",))
        url = f"http://127.0.0.1:{server.port}/"
        instance = launcher.prepare(program, {"url": url}, grants=grants)
        with trio.fail_after(LIMIT_SECONDS):
            result = json.loads(await instance.run())
    assert result == [201, "é", True, {"a": "ü"}, "application/json", "text", True]
    assert server.seen[1].headers["x-a"] == "b"


async def test_a_request_that_is_not_granted_says_what_would_allow_it(
    open_fake: OpenLauncher,
) -> None:
    program = program_of("await http_get('http://127.0.0.1:9/')")
    async with open_fake(services=PLAIN) as launcher:
        with pytest.raises(GuestFailedError, match=r"--allow-http 127\.0\.0\.1:9") as e:
            await run(launcher, program)
    assert e.value.kind == "ForbiddenError"


PARENT = "if role != 'parent': return await CHILDREN[role]()\n"
CHILDREN = (
    "async def echo():\n"
    "    async for message in messages(): await send(message)\n"
    "    return 'echoed'\n"
    "async def say():\n"
    "    for i in range(3): await send(str(i))\n"
    "    return {'said': 3}\n"
    "async def fail():\n"
    "    await sleep(0)\n"
    "    raise ValueError('bad')\n"
    "async def hold():\n"
    "    await send('holds')\n"
    "    async with Context() as ctx:\n"
    "        await ctx.fill('x' * 40)\n"
    "        await ctx.forward()\n"
    "        await sleep(1e6)\n"
    "async def nest():\n"
    "    async with spawn(role='hold') as child:\n"
    "        await send(await child.receive())\n"
    "CHILDREN = dict(echo=echo, say=say, fail=fail, hold=hold, nest=nest)\n"
)


def parent(body: str) -> SourceProgram:
    """Return a program that launches itself in other roles."""
    return program_of(CHILDREN + PARENT + body, parameters="role: str = 'parent'")


async def test_a_child_answers_and_its_result_is_there_in_the_end(
    open_fake: OpenLauncher,
) -> None:
    program = parent(
        "async with spawn(role='echo') as child:\n"
        "    await child.send('a')\n"
        "    await child.send(b'b')\n"
        "    got = [await child.receive(), list(await child.receive())]\n"
        "    child.cancel()\n"
        "async with spawn(role='say') as child:\n"
        "    said = [m async for m in child]\n"
        "    result = await child.wait()\n"
        "return [got, said, result, await child.wait()]"
    )
    async with open_fake() as launcher:
        result = await run(launcher, program)
    assert result == [["a", [98]], ["0", "1", "2"], {"said": 3}, {"said": 3}]


async def test_many_children_at_once(open_fake: OpenLauncher) -> None:
    program = parent(
        "results = []\n"
        "async def one():\n"
        "    async with spawn(role='say') as child: results.append(await child.wait())\n"
        "async with open_nursery() as nursery:\n"
        "    for _ in range(8): nursery.start_soon(one)\n"
        "return results"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == [{"said": 3}] * 8


@pytest.mark.parametrize(
    "inside",
    ["pass", "await child.wait()", "await sleep(1e6)", "await child.receive()"],
)
async def test_a_child_that_fails_cancels_the_block_and_raises_in_the_parent(
    open_fake: OpenLauncher, inside: str
) -> None:
    program = parent(
        "try:\n"
        "    async with spawn(role='fail') as child:\n"
        f"        {inside}\n"
        "except ChildFailedError as error:\n"
        "    return [error.kind, error.message, 'in fail' in error.traceback]"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == ["ValueError", "bad", True]


async def test_a_failure_that_nobody_catches_shows_the_childs_lines(
    open_fake: OpenLauncher,
) -> None:
    program = parent("async with spawn(role='fail'): pass")
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="ValueError: bad") as failure:
            await run(launcher, program)
    assert failure.value.kind == "ChildFailedError"
    assert "raise ValueError('bad')" in failure.value.traceback


@pytest.mark.parametrize("role", ["hold", "nest"])
@pytest.mark.parametrize(
    ("enter", "leave"),
    [
        ("with move_on_after(1e6) as scope:", "scope.cancel()"),
        ("with move_on_after(1e6) as scope:", "child.cancel()"),
        ("try:", "raise KeyError"),
    ],
)
async def test_a_block_that_is_left_early_takes_its_child_with_it(
    open_fake: OpenLauncher, role: str, enter: str, leave: str
) -> None:
    program = parent(
        f"{enter}\n"
        f"    async with spawn(role={role!r}) as child:\n"
        "        assert await child.receive() == 'holds'\n"
        f"        {leave}\n"
        + ("except KeyError: pass\n" if enter == "try:" else "")
        + "return [await store.list_keys(), child.program]"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == [[], ""]


@pytest.mark.parametrize("end", ["return 1", "1 / 0", "while True: pass"])
@pytest.mark.parametrize("role", ["hold", "nest"])
async def test_children_end_with_a_parent_that_dies(
    open_fake: OpenLauncher, end: str, role: str
) -> None:
    # A block would wait: this parent launches without one.
    program = parent(
        f"child = spawn(role={role!r})\n"
        "await child.__aenter__()\n"
        "await child.receive()\n"
        "log('ready')\n"
        f"{end}"
    )
    async with open_fake() as launcher:
        with trio.fail_after(LIMIT_SECONDS), trio.CancelScope() as scope:

            def on_log(_line: object) -> None:
                if end.startswith("while"):
                    scope.cancel()

            try:
                await launcher.prepare(program, {}, on_log=on_log).run()
            except GuestFailedError as error:
                assert error.kind in ("RuntimeError", "ZeroDivisionError")
        assert launcher.num_running == 0


@pytest.mark.parametrize("milliseconds", range(0, 60, 6))
async def test_a_parent_can_be_cancelled_at_any_moment(
    open_fake: OpenLauncher, milliseconds: int
) -> None:
    program = parent(
        "async def one(role):\n"
        "    async with spawn(role=role) as child:\n"
        "        async for message in child: await store.set('k', message)\n"
        "async with open_nursery() as nursery:\n"
        "    for role in ('hold', 'nest', 'say', 'echo'): nursery.start_soon(one, role)"
    )
    async with open_fake() as launcher:
        await launcher.compile(program)
        with trio.move_on_after(milliseconds / 1000):
            await launcher.prepare(program, {}).run()
        assert launcher.num_running == 0


async def test_programs_are_launched_by_name_with_at_most_the_parents_grants(
    open_fake: OpenLauncher,
) -> None:
    other = program_of(
        "try: broadcast('them/news', '')\n"
        "except ForbiddenError: return f'forbidden {n}'\n"
        "return f'granted {n}'",
        parameters="n: int",
    )
    program = program_of(
        "async with spawn('other', n=7) as child: result = await child.wait()\n"
        "try:\n"
        "    async with spawn('missing'): pass\n"
        "except NotFoundError as error: return [result, str(error)]"
    )
    async with open_fake(services={"programs": {"other": other}}) as launcher:
        for topics, word in ((True, "granted"), (False, "forbidden")):
            result, message = await run(
                launcher, program, grants=Grants(topics=topics), owner="us"
            )
            assert result == f"{word} 7"
            assert "'missing'" in message
            assert "other" in message


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_children": 1}, "1 children are there"),
        ({"max_depth": 0}, "0 launches deep"),
        ({"max_instances": 2}, "2 inferlets are running"),
    ],
)
async def test_children_beyond_a_limit_are_refused(
    open_fake: OpenLauncher, limits: dict[str, int], message: str
) -> None:
    program = parent(
        "async with spawn(role='echo') as first:\n"
        "    try:\n"
        "        async with spawn(role='echo'): pass\n"
        "    finally: first.cancel()"
    )
    async with open_fake(**limits) as launcher:
        await launcher.compile(program)
        with pytest.raises(GuestFailedError, match=message) as failure:
            await run(launcher, program)
    assert failure.value.kind == "LimitError"


async def test_wrong_arguments_are_a_failure_of_the_child(
    open_fake: OpenLauncher,
) -> None:
    program = parent("async with spawn(roll='echo'): pass")
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="there is no argument 'roll'"):
            await run(launcher, program)


CALLS = {
    "receive": "receive()",
    "topic": "heard.receive()",
    "store": "store.set('k', 'v')",
    "get": "store.get('k')",
    "http": "http_get(url)",
    "child send": "flood(child)",
    "child receive": "child.receive()",
    "child wait": "child.wait()",
    "spawn": "launch()",
}


@pytest.mark.parametrize("seconds", [0, 0.001, 0.02])
@pytest.mark.parametrize("name", CALLS)
async def test_a_branch_that_is_cancelled_in_a_call_leaves_nothing(
    open_fake: OpenLauncher, name: str, seconds: float
) -> None:
    program = program_of(
        "import json\n"
        "if role == 'hold': await sleep(1e6)\n"
        "async def flood(child):\n"
        "    while True: await child.send('x')\n"
        "async def launch():\n"
        "    async with spawn(role='hold'): await sleep(1e6)\n"
        "async def call():\n"
        f"    with move_on_after({seconds}): await {CALLS[name]}\n"
        "async with subscribe('t') as heard, spawn(role='hold') as child:\n"
        "    async with open_nursery() as nursery:\n"
        "        for _ in range(3): nursery.start_soon(call)\n"
        "    child.cancel()\n"
        "from inferlet_py._host import get_host\n"
        "return json.loads(get_host().debug_query('tickets'))['open']",
        parameters="role: str = '', url: str = ''",
    )

    async def never(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    async with listen(never) as port, open_fake(services=PLAIN) as launcher:
        await launcher.compile(program)
        url = f"http://127.0.0.1:{port}/"
        instance = launcher.prepare(
            program, {"url": url}, grants=Grants(http=("127.0.0.1:*",))
        )
        with trio.fail_after(LIMIT_SECONDS):
            assert json.loads(await instance.run()) == 0
        assert launcher.num_running == 0
        assert len(instance.session.tasks) == 0
        assert instance.session.requests.num_bytes == 0
        assert len(launcher.services.topics) == 0
