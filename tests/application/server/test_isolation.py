"""Users of one server who do not know of each other."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.services import Grants
from tests.application.server.test_keys import open_with
from tests.application.server.test_websocket import Socket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.application.server.clients import Api
    from tests.application.server.conftest import OpenServer, Served

WAITS = "await send('ready')\nawait receive()"
FILL = "ctx = Context()\nawait ctx.fill('a long beginning of a text, of two pages or more')\n"


@asynccontextmanager
async def open_users(
    open_server: OpenServer, **options: Any
) -> AsyncGenerator[tuple[Served, Api, Api]]:
    """Open a server with two users."""
    async with open_server(has_keys=True, **options) as served:
        yield served, served.user("ann"), served.user("bob")


async def result_of(api: Api, body: str, **arguments: object) -> Any:
    """Run a program that is sent along, and return its result."""
    await api.deploy("once", body)
    document = await api.run("once", **arguments)
    assert document["state"] == "succeeded", document
    return document["result"]


async def test_programs_belong_to_their_user(open_server: OpenServer) -> None:
    async with open_users(open_server) as (_, ann, bob):
        await ann.deploy("same", "return 'of ann'")
        await ann.deploy("hers", "return 'of ann'")
        await bob.deploy("same", "return 'of bob'")
        names = [p["name"] for p in (await bob.get("/v1/programs")).json["programs"]]
        assert names == ["same"]
        one = "/v1/programs/hers"
        for method, path in (("GET", one), ("DELETE", one), ("POST", f"{one}/run")):
            answer = await bob.ask(method, path)
            assert answer.status == 404, (method, path)
            # Nor may a refusal tell what others have.
            known = answer.error["message"].replace("program 'hers'", "")
            assert "hers" not in known
        await bob.ask("DELETE", "/v1/programs/same")
        assert (await ann.run("same"))["result"] == "of ann"
        assert (await ann.run("hers"))["result"] == "of ann"


async def test_a_child_is_launched_from_the_programs_of_its_own_user(
    open_server: OpenServer, tmp_path: Path
) -> None:
    shared = tmp_path / "built_in" / "shared"
    shared.mkdir(parents=True)
    (shared / "app.py").write_text(
        "from inferlet_py import *\n\n@inferlet\nasync def main():\n"
        "    async with spawn('leaf') as child: return await child.wait()\n"
    )
    parent = "async with spawn('leaf') as child: return await child.wait()"
    stranger = (
        "try:\n    async with spawn('only') as child: return await child.wait()\n"
        "except NotFoundError as error: return str(error)"
    )
    async with open_users(open_server) as (_, ann, bob):
        for api, name in ((ann, "ann"), (bob, "bob")):
            await api.deploy("leaf", f"return 'leaf of {name}'")
            assert await result_of(api, parent) == f"leaf of {name}"
            assert (await api.run("shared"))["result"] == f"leaf of {name}"
        await ann.deploy("only", "return 1")
        refused = await result_of(bob, stranger)
        assert "there is no program 'only'" in refused
        assert "only" not in refused.replace("program 'only'", "")


async def test_instances_belong_to_their_user(open_server: OpenServer) -> None:
    async with open_users(open_server) as (served, ann, bob):
        await ann.deploy("waits", WAITS)
        async with ann.launch("waits") as events:
            name = (await events.until("started"))["id"]
            one = f"/v1/instances/{name}"
            assert (await bob.get("/v1/instances")).json == {"instances": []}
            for method, path in (
                *(("GET", one), ("GET", f"{one}/events"), ("GET", f"{one}/logs")),
                *(("POST", f"{one}/messages"), ("POST", f"{one}/cancel")),
                *(("POST", f"{one}/kill"), ("GET", f"{one}/timeline")),
            ):
                answer = await bob.ask(method, path, {"text": "x"})
                none = await bob.ask(method, path.replace(name, "none"), {"text": "x"})
                assert (answer.status, none.status) == (404, 404), (method, path)
                expected = none.error["message"].replace("'none'", repr(name))
                assert answer.error["message"] == expected, "it tells that it is there"
            key = served.make_key("bob")
            async with await served.web.connect() as client:
                socket = Socket(await open_with(client, f"Authorization: Bearer {key}"))
                for kind in ("attach", "detach", "cancel"):
                    await socket.send(type=kind, instance=name, request=1)
                    refused = await socket.until("refused")
                    assert refused["error"]["status"] == 404, kind
            assert await ann.state(name) == "running"


async def test_the_dashboard_shows_a_user_their_own_instances(
    open_server: OpenServer,
) -> None:
    async with open_users(open_server) as (served, ann, bob):
        # The same user with a key for more must not be shown to the one with less.
        admin = served.user("bob", "admin")
        await ann.deploy("waits", WAITS)
        async with ann.launch("waits") as events:
            name = (await events.until("started"))["id"]
            for api, sees in ((admin, True), (bob, False), (ann, True), (bob, False)):
                answer = await api.get("/v1/stats")
                assert answer.status == 200
                assert (name in answer.body.decode()) == sees


async def test_exports_belong_to_their_user_unless_they_are_published(
    open_server: OpenServer,
) -> None:
    exporting = f"{FILL}ctx.export('story', persistent=True)"
    publishing = f"{FILL}ctx.export('news', persistent=True, permission='published')"
    importing = (
        "try: Context.from_export(story)\n"
        "except (NotFoundError, ForbiddenError) as error: return 'refused'\n"
        "return 'taken'"
    )
    grants = Grants(publish=True)
    async with open_users(open_server, grants=grants) as (served, ann, bob):
        await result_of(ann, exporting)
        await result_of(ann, publishing)
        for name, api, expected in (
            *(("story", ann, "taken"), ("story", bob, "refused")),
            *(("ann/story", bob, "refused"), ("ann/news", bob, "taken")),
        ):
            await api.deploy("importing", importing, parameters="story: str")
            found = (await api.run("importing", story=name))["result"]
            assert found == expected, (name, expected)
        for model in served.launcher.models.values():
            model.exports.clear()


async def test_what_users_have_in_common_is_not_shared_between_them(
    open_server: OpenServer,
) -> None:
    body = "ctx = Context()\nawait ctx.fill('x' * 64, reuse=True)\nreturn await ctx.generate(max_tokens=1).text()"
    async with open_users(open_server) as (served, ann, bob):
        counts = list[int]()
        for api in (ann, ann, bob):
            await api.deploy("reuses", body)
            counts.append((await api.run("reuses"))["tokens_computed"])
        # How long a prefix takes would tell what others have asked.
        assert counts[0] == counts[2] > counts[1]
        for model in served.launcher.models.values():
            model.exports.clear()


async def test_the_store_of_a_user_is_closed_to_others(
    open_server: OpenServer,
) -> None:
    async with open_users(open_server) as (_, ann, bob):
        await result_of(ann, "await store.set('secret', 'of ann')")
        read = (
            "return [await store.get_text('secret'), await store.get_text('ann/secret'), "
            "await store.list_keys()]"
        )
        assert await result_of(bob, read) == [None, None, []]
        await result_of(bob, "await store.set('secret', 'of bob')")
        assert await result_of(ann, "return await store.get_text('secret')") == "of ann"


async def test_topics_of_a_user_are_closed_to_others(open_server: OpenServer) -> None:
    listening = (
        "async with subscribe('news') as news:\n"
        "    await send('ready')\n"
        "    async for message in news: return message\n"
    )
    async with open_users(open_server) as (_, ann, bob):
        await ann.deploy("listens", listening)
        async with ann.launch("listens") as events:
            await events.until("message")
            assert await result_of(bob, "return broadcast('news', 'of bob')") == 0
            refused = (
                "try: return broadcast('ann/news', 'of bob')\n"
                "except ForbiddenError: return 'refused'"
            )
            assert await result_of(bob, refused) == "refused"
            eavesdropping = (
                "try:\n    async with subscribe('ann/news') as news: return 'hears'\n"
                "except ForbiddenError: return 'refused'"
            )
            assert await result_of(bob, eavesdropping) == "refused"
            assert await result_of(ann, "return broadcast('news', 'of ann')") == 1
            heard = (await events.until("result"))["value"]
            assert "of ann" in str(heard)


@pytest.mark.parametrize("route", ["run", "instances"])
async def test_inline_programs_and_named_ones_run_for_their_user(
    open_server: OpenServer, route: str
) -> None:
    async with open_users(open_server) as (_, ann, _bob):
        await ann.deploy("hers", "return 1")
        path = "/v1/programs/hers/run" if route == "run" else "/v1/instances"
        asked: Any = {} if route == "run" else {"program": "hers"}
        await ann.ask("POST", path, asked)
        (found,) = (await ann.get("/v1/instances")).json["instances"]
        assert found["owner"] == "ann"
