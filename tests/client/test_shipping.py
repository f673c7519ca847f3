"""Functions that run on a server: what is sent, what is refused, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.client import BlockingClient, ProgramFailedError
from pie_trio.client.shipping import ship
from pie_trio.errors import ProgramError
from tests.client import shipped
from tests.client.conftest import in_thread, url_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.application.server.conftest import OpenServer
    from tests.client.conftest import OpenClient


async def test_a_call_sends_the_function_and_returns_its_result(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        remote = pie.inferlet(shipped.plain)
        assert await remote("ann") == "ann"
        (program,) = await pie.programs()
        assert program.name == remote.shipped.name
        assert program.name.startswith("plain-")
        described = await pie.program(program.name)
        assert described.documentation == "Greet somebody."
        assert remote.__doc__ == shipped.plain.__doc__


async def test_helpers_imports_and_constants_come_along(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        remote = pie.inferlet(shipped.with_helpers)
        async with remote.run(name="ann") as run:
            result: Any = await run.result()
    assert result == {"text": "ann", "number": 1}
    text = remote.shipped.data.decode()
    assert "import math as mathematics" in text
    assert "from collections import Counter" in text
    assert "LIMIT = 3" in text
    assert "# the comment goes along" in text
    assert "OPEN" not in text


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [
        (shipped.recursive, (3,), 3),
        (shipped.mutual, (10,), True),
        (shipped.plain, (), "you"),
    ],
)
async def test_functions_that_name_each_other_run(
    open_client: OpenClient,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    result: object,
) -> None:
    async with open_client() as (pie, _):
        assert await pie.inferlet(function)(*arguments) == result


async def test_a_program_uses_the_model(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        assert len(await pie.inferlet(shipped.generating)("ab")) > 0


async def test_a_failure_shows_the_line_of_the_function(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        with pytest.raises(ProgramFailedError, match="hello xx!!!") as caught:
            await pie.inferlet(shipped.failing)()
    assert 'raise ValueError(greeting("x"))' in caught.value.traceback


async def test_it_is_uploaded_once_and_again_if_it_was_removed(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, served):
        put, sent = served.programs.put, list[str]()

        async def noted(name: str, *args: Any, **options: Any) -> Any:
            sent.append(name)
            return await put(name, *args, **options)

        served.programs.put = noted  # type: ignore[method-assign]
        remote = pie.inferlet(shipped.plain)
        for _ in range(3):
            await remote()
        await pie.inferlet(shipped.plain)()
        assert sent == [remote.shipped.name]
        await pie.undeploy(remote.shipped.name)
        assert await remote("again") == "again"
        assert sent == [remote.shipped.name] * 2


async def test_arguments_are_checked_before_anything_is_sent(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
            await pie.inferlet(shipped.plain)(x=1)  # type: ignore[call-arg]
        assert await pie.programs() == []


async def test_a_module_is_sent_as_a_whole(
    open_client: OpenClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from inferlet_py import inferlet\n\n\n"
        "@inferlet\nasync def main(x: int) -> int:\n    return x + 1\n"
    )
    (tmp_path / "pie_test_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import pie_test_module  # type: ignore[import-not-found]

    async with open_client() as (pie, _):
        assert await pie.inferlet(pie_test_module)(x=1) == 2
        assert await pie.inferlet(pie_test_module.main)(x=2) == 3


async def test_a_blocking_client_has_the_same(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> None:
            with BlockingClient(url_of(served)) as pie:
                remote = pie.inferlet(shipped.plain)
                assert remote("ann") == "ann"
                kinds = [event.kind for event in remote.run("bob")]
                assert kinds == ["started", "message", "result", "end"]

        await in_thread(use)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (shipped.needs_numpy, "cannot send the module numpy, which needs_numpy needs"),
        (shipped.needs_file, "cannot send OPEN, which is an object of builtins.object"),
        (shipped.needs_file, "which needs_file -> helped needs"),
        (shipped.needs_nan, "cannot send NAN, which is an object of builtins.float"),
        (
            shipped.undefined,
            "cannot send missing, which undefined needs: it is not def",
        ),
        (shipped.synchronous, "begins with `async def`"),
        (3, "begins with `async def`"),
    ],
)
def test_what_cannot_be_sent_is_named(function: object, words: str) -> None:
    with pytest.raises(ProgramError, match=words.replace("*", r"\*")):
        ship(function)


def test_a_closure_is_refused_by_the_names_that_it_takes() -> None:
    secret = "x"

    async def inner() -> str:
        return secret

    with pytest.raises(ProgramError, match="cannot send secret of the function around"):
        ship(inner)


def test_what_has_no_source_is_refused() -> None:
    names: dict[str, Any] = {}
    exec(compile("async def main(): pass", "<made>", "exec"), names)
    with pytest.raises(ProgramError, match="its source is not to be had"):
        ship(names["main"])


def test_the_name_follows_the_text() -> None:
    assert ship(shipped.plain).name == ship(shipped.plain).name
    assert ship(shipped.plain).name != ship(shipped.recursive).name
