"""Instances over HTTP: launched, followed, sent to, and ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.server.limits import ServerLimits
from tests.application.web.servers import settle

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

COUNTS = "i = 0\nwhile True:\n    await send(str(i))\n    i += 1\n    await sleep(0)"
WAITS = "await send('ready')\nawait receive()"
FLOODS = "while True: await send('x' * 10_000)"


async def test_a_launch_streams_what_the_program_tells(open_server: OpenServer) -> None:
    body = (
        "print('a line')\nawait send('hello ' + name)\nawait send(b'\\x00')\nreturn [1]"
    )
    async with open_server() as served:
        await served.api.deploy("hello", body, parameters="name: str")
        asked = {"program": "hello", "arguments": {"name": "ann"}}
        async with served.api.stream("POST", "/v1/instances", asked) as stream:
            events = await stream.rest()
    kinds = [kind for kind, _ in events]
    assert kinds == ["started", "log", "message", "message", "result", "end"]
    assert stream.ids == [1, 2, 3, 4, 5, 6]
    (_, started), (_, log), (_, text), (_, binary), (_, result), (_, end) = events
    assert started["program"] == "hello"
    assert f"x-instance-id: {started['id']}".encode() in stream.head
    assert (log["source"], log["text"]) == ("stdout", "a line")
    assert text == {"text": "hello ann"}
    assert binary == {"binary": "AA=="}
    assert result == {"value": [1]}
    assert end["state"] == "succeeded"


async def test_the_answer_is_one_document_for_who_accepts_json(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy(
            "add", "await send('sum')\nreturn a + b", parameters="a: int, b: int"
        )
        answer = await served.api.ask(
            *("POST", "/v1/programs/add/run", {"a": 1, "b": 2}),
            accept="application/json",
        )
    assert answer.json["result"] == 3
    assert answer.json["messages"] == [{"text": "sum"}]
    assert answer.json["state"] == "succeeded"


async def test_an_error_of_the_program_comes_with_its_traceback(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("fails", "await send('before')\nraise ValueError('no')")
        async with served.api.launch("fails") as stream:
            events = await stream.rest()
        assert [kind for kind, _ in events] == ["started", "message", "error", "end"]
        error = events[2][1]
        assert (error["code"], error["kind"]) == ("program-failed", "ValueError")
        assert error["message"] == "no"
        assert "line 6" in error["traceback"]
        assert events[3][1]["state"] == "failed"


async def test_a_program_may_be_sent_with_its_launch(open_server: OpenServer) -> None:
    source = "from inferlet_py import *\n@inferlet\nasync def main(): return 7"
    async with open_server() as served:
        asked: dict[str, object] = {"program": {"source": source}}
        answer = await served.api.ask(
            "POST", "/v1/instances", asked, accept="application/json"
        )
        assert answer.json.get("result") == 7, answer.json
        files = {"app.py": f"from other import *\n{source}", "other.py": "seven = 7"}
        files["app.py"] = files["app.py"].replace("return 7", "return seven")
        answer = await served.api.ask(
            *("POST", "/v1/instances", {"program": {"files": files}}),
            accept="application/json",
        )
        assert answer.json.get("result") == 7, answer.json


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        (b"{", 400, "no JSON"),
        ([], 422, "a launch must be a JSON object"),
        ({"program": 1}, 422, "program"),
        ({"program": "hello", "argument": {}}, 422, "'argument', which is not known"),
        ({"program": "hello", "arguments": 3}, 422, "arguments must be"),
        ({"program": "hello", "detach": "yes"}, 422, "detach must be"),
        ({"program": "nobody"}, 404, "there is no program 'nobody'"),
        ({"program": {}}, 422, "source or files"),
        ({"program": {"source": "x", "files": {}}}, 422, "source or files"),
        ({"program": {"files": {"app.py": 1}}}, 422, "must be the text"),
        ({"program": {"source": "\ud800"}}, 422, "not Python text"),
        ({"program": {"source": "def ("}}, 422, "invalid syntax"),
    ],
)
async def test_a_launch_that_cannot_be_says_why(
    open_server: OpenServer, asked: object, status: int, words: str
) -> None:
    async with open_server() as served:
        await served.api.deploy("hello", "pass")
        answer = await served.api.ask("POST", "/v1/instances", asked)
        assert answer.status == status
        assert words in answer.error["message"] + str(answer.error)
        assert served.registry.num_running == 0


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_cancels_its_instance(
    open_server: OpenServer, how: str
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with served.api.launch("waits") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            assert await served.api.state(name) == "running"
            await stream.client.leave(how)
            with trio.fail_after(30):
                await served.registry.drain(60)
        assert await served.api.state(name) == "cancelled"
        assert served.launcher.num_running == 0


async def test_who_leaves_before_the_answer_leaves_nothing_behind(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(lease_seconds=0.05)) as served:
        await served.api.deploy("waits", WAITS)
        source = (await served.programs.find("waits", owner=served.owner)).source
        instance = await served.registry.launch(source, {}, owner=served.owner)
        with trio.fail_after(30):
            await instance.wait_ended()
        assert instance.state == "cancelled"


TELLS_MUCH = "for i in range(30): await send(str(i))"


async def test_what_has_ended_waits_for_its_client_as_long_as_what_runs(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(max_events=4)) as served:
        await served.api.deploy("tells", TELLS_MUCH)
        source = (await served.programs.find("tells", owner=served.owner)).source
        instance = await served.registry.launch(source, {}, owner=served.owner)
        with trio.fail_after(30):
            await instance.wait_ended_running()
            with instance.attach() as reader:
                events = [event async for batch in reader for event in batch.events]
    assert reader.num_lost == 0
    told = [event.data for event in events if event.kind == "message"]
    assert told == [str(i) for i in range(30)]


async def test_what_has_ended_does_not_wait_for_a_client_that_never_comes(
    open_server: OpenServer,
) -> None:
    async with open_server(
        limits=ServerLimits(max_events=4, lease_seconds=0.5)
    ) as served:
        await served.api.deploy("tells", TELLS_MUCH)
        source = (await served.programs.find("tells", owner=served.owner)).source
        instance = await served.registry.launch(source, {}, owner=served.owner)
        with trio.fail_after(30):
            await instance.wait_ended()
        assert served.registry.num_running == 0


async def test_a_detached_instance_outlives_its_client(open_server: OpenServer) -> None:
    body = "await send('one')\nawait send(await receive())\nreturn 'done'"
    async with open_server() as served:
        await served.api.deploy("job", body)
        asked = {"program": "job", "detach": True}
        answer = await served.api.ask(
            "POST", "/v1/instances", asked, accept="application/json"
        )
        assert answer.status == 202
        name = answer.json["id"]
        assert answer.headers["location"] == f"/v1/instances/{name}"
        path = f"/v1/instances/{name}/events"
        async with served.api.stream("GET", path) as stream:
            assert await stream.texts(1) == ["one"]
            last = stream.ids[-1]
        await served.api.ask("POST", f"/v1/instances/{name}/messages", {"text": "two"})
        async with served.api.stream("GET", f"{path}?after={last}") as stream:
            events = await stream.rest()
        assert ("message", {"text": "two"}) in events
        assert stream.ids == list(range(last + 1, last + 1 + len(events)))
        header = str(last + 1)
        async with served.api.stream("GET", path, last_event_id=header) as stream:
            assert await stream.rest() == events[1:]


async def test_messages_are_received_in_order_and_end(open_server: OpenServer) -> None:
    body = "async for message in messages(): await send(message)\nreturn 'end'"
    async with open_server() as served:
        await served.api.deploy("echo", body)
        async with served.api.launch("echo") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("receiving")
            path = f"/v1/instances/{name}/messages"
            both = [{"text": "a"}, {"binary": "AAE="}]
            assert (
                await served.api.ask("POST", path, {"messages": both})
            ).status == 202
            raw = "application/octet-stream"
            await served.api.ask("POST", path, b"\xff", content_type=raw)
            await served.api.ask("POST", path, "é".encode(), content_type="text/plain")
            await served.api.ask("POST", path, {"end": True})
            events = await stream.rest()
        sent = [data for kind, data in events if kind == "message"]
        assert sent == [
            {"text": "a"},
            {"binary": "AAE="},
            {"binary": "/w=="},
            {"text": "é"},
        ]
        assert (await served.api.ask("POST", path, {"text": "late"})).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        {"texts": 1},
        {"text": 1},
        {"binary": "?"},
        {"messages": {}},
        {"messages": [1]},
        {},
    ],
)
async def test_what_is_no_message_is_refused(
    open_server: OpenServer, body: object
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with served.api.launch("waits") as stream:
            name = (await stream.until("started"))["id"]
            answer = await served.api.ask(
                "POST", f"/v1/instances/{name}/messages", body
            )
            assert answer.status == 422
            assert await served.api.state(name) == "running"


async def test_an_instance_without_room_for_messages_says_so(
    open_server: OpenServer,
) -> None:
    limits = ServerLimits(send_seconds=0.05)
    async with open_server(limits=limits, max_unread=2) as served:
        await served.api.deploy("deaf", "await send('ready')\nawait sleep(3600)")
        async with served.api.launch("deaf") as stream:
            name = (await stream.until("started"))["id"]
            four = {"messages": [{"text": str(i)} for i in range(4)]}
            path = f"/v1/instances/{name}/messages"
            answer = await served.api.ask("POST", path, four)
            assert answer.status == 429
            assert "took 2 of these 4" in answer.error["message"]


async def test_cancel_ends_an_instance_and_its_stream(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("spins", "await send('ready')\nwhile True: pass")
        async with served.api.launch("spins") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            answer = await served.api.ask("POST", f"/v1/instances/{name}/cancel")
            assert answer.json["state"] == "cancelled"
            events = await stream.rest()
        assert events[-2][0] == "error"
        assert events[-2][1]["code"] == "cancelled"
        assert events[-1][1]["state"] == "cancelled"
        again = await served.api.ask("POST", f"/v1/instances/{name}/cancel")
        assert again.json["state"] == "cancelled"


CLEANS_UP = """
try:
    await send('ready')
    await receive()
finally:
    with CancelScope(shield=True):
        await sleep(0.01)
        await send('cleaned up')
    print('the end')
"""


@pytest.mark.parametrize("way", ["cancel", "kill", "leave"])
async def test_a_program_that_is_cancelled_cleans_up_unless_it_is_killed(
    open_server: OpenServer, way: str
) -> None:
    async with open_server() as served:
        await served.api.deploy("cleans", CLEANS_UP)
        async with served.api.launch("cleans") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            if way == "leave":
                await stream.client.leave("fin")
                await served.registry.get(name, owner=served.owner).wait_ended()
            else:
                path = f"/v1/instances/{name}/{way}"
                answer = await served.api.ask("POST", path)
                assert answer.json["state"] == "cancelled"
                told = [data for kind, data in await stream.rest() if kind == "message"]
                assert told == ([{"text": "cleaned up"}] if way == "cancel" else [])
        assert await served.api.state(name) == "cancelled"
        logs = (await served.api.get(f"/v1/instances/{name}/logs")).json["lines"]
        assert [line["text"] for line in logs] == ["the end"] * (way != "kill")


async def test_a_client_that_does_not_read_stops_only_its_own_instance(
    open_server: OpenServer,
) -> None:
    limits = ServerLimits(max_events=16, max_event_bytes=100_000)
    async with open_server(
        limits=limits, max_unread=8, max_unread_bytes=100_000
    ) as served:
        await served.api.deploy("floods", FLOODS)
        await served.api.deploy("hello", "await send('hello')")
        async with served.api.launch("floods", receive_buffer=4096) as stream:
            name = (await stream.until("started"))["id"]
            instance = served.registry.get(name, owner=served.owner)
            last = -1
            with trio.fail_after(30):
                while last != instance.events.last_number:  # until it stands still
                    last = instance.events.last_number
                    for _ in range(5):
                        assert (await served.api.run("hello"))["messages"]
            assert instance.state == "running"
            assert instance.events.num_bytes < 1_000_000
            first = await stream.until("message")  # goes on where it stood
            while instance.events.last_number == last:
                await stream.until("message")
            assert first == {"text": "x" * 10_000}
        with trio.fail_after(30):
            await instance.wait_ended()


async def test_who_listens_too_late_is_told_what_is_lost(
    open_server: OpenServer,
) -> None:
    body = "for i in range(100): await send(str(i))"
    async with open_server(limits=ServerLimits(max_events=10)) as served:
        await served.api.deploy("many", body)
        asked = {"program": "many", "detach": True}
        answer = await served.api.ask(
            "POST", "/v1/instances", asked, accept="application/json"
        )
        name = answer.json["id"]
        await served.registry.get(name, owner=served.owner).wait_ended()
        async with served.api.stream("GET", f"/v1/instances/{name}/events") as stream:
            kind, lost = await stream.next()
            events = await stream.rest()
        assert kind == "lost"
        assert lost["events"] + len(events) == 103  # started, result and end
        assert len(events) == 10
        assert events[-3] == ("message", {"text": "99"})


async def test_logs_are_kept_and_followed(open_server: OpenServer) -> None:
    body = (
        "print('one')\nawait send('ready')\nawait receive()\nlog('two', level='error')"
    )
    async with open_server() as served:
        await served.api.deploy("logs", body)
        async with served.api.launch("logs") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            path = f"/v1/instances/{name}/logs"
            (line,) = (await served.api.get(path)).json["lines"]
            assert (line["source"], line["text"]) == ("stdout", "one")
            async with served.api.stream("GET", f"{path}?follow=1") as follow:
                assert (await follow.next())[1]["text"] == "one"
                await served.api.ask(
                    "POST", f"/v1/instances/{name}/messages", {"text": ""}
                )
                line = (await follow.next())[1]
                assert (line["source"], line["text"]) == ("error", "two")
                rest = await follow.client.read_until(b"0\r\n\r\n")
                assert b"data" not in rest
            await stream.rest()
        assert len((await served.api.get(path)).json["lines"]) == 2


async def test_status_tells_what_an_instance_holds(open_server: OpenServer) -> None:
    body = (
        "context = Context()\nawait context.fill('hello world, this is long')\n"
        "await context.generate(max_tokens=3).text()\nawait send('ready')\nawait receive()"
    )
    async with open_server() as served:
        await served.api.deploy("holds", body)
        async with served.api.launch("holds") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            status = (await served.api.get(f"/v1/instances/{name}")).json
            assert status["pages"] > 0
            assert status["tokens_sampled"] >= 1
            assert status["tokens_computed"] > status["tokens_sampled"]
            assert status["commands_in_flight"] == 0
            assert (status["state"], status["owner"]) == ("running", "local")
            listed = (await served.api.get("/v1/instances")).json["instances"]
            assert [one["id"] for one in listed] == [name]
            await served.api.ask("POST", f"/v1/instances/{name}/messages", {"text": ""})
            end = (await stream.rest())[-1][1]
        assert end["tokens_sampled"] == status["tokens_sampled"]
        assert (await served.api.get(f"/v1/instances/{name}")).json["pages"] == 0


async def test_one_too_many_is_told_to_try_again(open_server: OpenServer) -> None:
    async with open_server(max_instances=1) as served:
        await served.api.deploy("waits", WAITS)
        async with served.api.launch("waits") as stream:
            await stream.until("message")
            answer = await served.api.ask("POST", "/v1/programs/waits/run")
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")


async def test_instances_that_ended_are_forgotten_when_they_are_too_many(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(max_ended=2)) as served:
        await served.api.deploy("hello", "pass")
        names = [(await served.api.run("hello"))["id"] for _ in range(4)]
        listed = (await served.api.get("/v1/instances")).json["instances"]
        assert [one["id"] for one in listed] == names[2:]
        answer = await served.api.get(f"/v1/instances/{names[0]}/events")
        assert answer.status == 404


async def test_instances_that_ended_are_forgotten_when_they_are_too_large(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(max_ended_bytes=25_000)) as served:
        await served.api.deploy("large", "await send('x' * 10_000)")
        names = [(await served.api.run("large"))["id"] for _ in range(4)]
        listed = (await served.api.get("/v1/instances")).json["instances"]
        assert [one["id"] for one in listed] == names[2:]


async def test_an_answer_that_grows_too_large_is_given_up(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(max_answer_bytes=50_000)) as served:
        await served.api.deploy("floods", FLOODS)
        answer = await served.api.ask(
            "POST", "/v1/programs/floods/run", accept="application/json"
        )
        assert answer.status == 413
        with trio.fail_after(30):
            await served.registry.drain(60)


async def test_a_program_launches_another_by_name(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("child", "return 'from the child'")
        body = "async with spawn('child') as child: return await child.wait()"
        await served.api.deploy("parent", body)
        answer = await served.api.run("parent")
        assert answer.get("result") == "from the child", answer


async def test_draining_lets_instances_end_and_ends_the_others(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with (
            served.api.launch("waits") as patient,
            served.api.launch("waits") as late,
        ):
            names = [(await s.until("started"))["id"] for s in (patient, late)]
            for stream in (patient, late):
                await stream.until("message")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.registry.drain, 0.3)
                await settle()
                refused = await served.api.ask("POST", "/v1/programs/waits/run")
                assert refused.status == 503
                assert (await served.api.get("/readyz")).status == 503
                path = f"/v1/instances/{names[0]}/messages"
                await served.api.ask("POST", path, {"text": ""})
                assert (await patient.rest())[-1][1]["state"] == "succeeded"
                events = await late.rest()
        assert events[-2][1]["message"] == "the server stops"
        assert events[-1][1]["state"] == "cancelled"


async def test_all_events_of_one_step_leave_in_one_chunk(
    open_server: OpenServer,
) -> None:
    body = (
        "await send('ready')\nawait receive()\nfor i in range(20): await send(str(i))"
    )
    async with open_server() as served:
        await served.api.deploy("bursts", body)
        async with served.api.launch("bursts") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            await stream.until("receiving")
            await served.api.ask("POST", f"/v1/instances/{name}/messages", {"text": ""})
            size = int(await stream.client.read_until(b"\r\n"), 16)
            data = await stream.client.read_until(b"\r\n0\r\n\r\n")
        assert data.count(b"event: message") == 20
        assert size >= data.rindex(b"event: message")
        assert json.dumps({"text": "19"}).encode() in data


async def test_a_stream_that_has_nothing_to_say_says_so(
    open_server: OpenServer,
) -> None:
    async with open_server(limits=ServerLimits(heartbeat_seconds=0.01)) as served:
        await served.api.deploy("waits", WAITS)
        async with served.api.launch("waits") as stream:
            name = (await stream.until("started"))["id"]
            await stream.client.read_until(b": keep-alive\n\n\r\n")
            path = f"/v1/instances/{name}/logs?follow=1"
            async with served.api.stream("GET", path) as follow:
                await follow.client.read_until(b": keep-alive\n\n\r\n")

                await served.api.ask("POST", f"/v1/instances/{name}/kill")
                await follow.client.read_until(b"0\r\n\r\n")
            assert (await stream.rest())[-1][1]["state"] == "cancelled"
