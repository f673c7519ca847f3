"""``pie keys``, and a server that asks for them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.cli import main
from tests.cli.conftest import run_from_the_start
from tests.cli.test_serve import ask, serving, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done, Pie

    Keys = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Keys:
    """Runs ``pie keys`` in this process, on a directory that is not there yet."""
    monkeypatch.delenv("PIE_CONFIG", raising=False)
    monkeypatch.delenv("PIE_DATA_DIR", raising=False)

    def run(action: str, *arguments: object) -> tuple[int, str, str]:
        words = ["keys", action, "--data-dir", str(tmp_path / "data")]
        code = main([*words, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_key_is_shown_once(keys: Keys) -> None:
    code, text, note = keys("add", "ann")
    assert code == 0
    assert text.startswith("pie_")
    assert "for launch and upload" in note
    code, listed, _ = keys("list")
    assert text.split("_")[1] in listed
    assert text.split("_")[2].strip() not in listed
    assert text.strip() not in note


def test_keys_are_listed_as_json(keys: Keys) -> None:
    _, made, _ = keys(
        *("add", "ann", "--json", "--scope", "launch", "--scope", "metrics"),
        *("--max-instances", 2, "--limit", "pages=100"),
    )
    _, listed, _ = keys("list", "--json")
    (found,) = json.loads(listed)
    expected = json.loads(made)
    assert expected.pop("key").split("_")[1] == found["id"]
    assert found == expected
    assert found["scopes"] == ["launch", "metrics"]
    assert found["limits"] == {"pages": 100, "instances": 2}


def test_one_key_or_all_of_a_user_are_revoked(keys: Keys) -> None:
    names = [keys("add", user)[1].split("_")[1] for user in ("ann", "ann", "bob")]
    assert keys("revoke", names[0])[1] == f"{names[0]}: revoked, of ann\n"
    assert keys("revoke", "--user", "ann")[1] == f"{names[1]}: revoked, of ann\n"
    assert [key["user"] for key in json.loads(keys("list", "--json")[1])] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "a/b"), "'a/b' is no name for a user"),
        (("add", ""), "'' is no name for a user"),
        (("add", "ann", "--limit", "pags=1"), "do you mean 'pages'?"),
        (("add", "ann", "--limit", "pages"), "expected a number, for example pages="),
        (("add", "ann", "--limit", "pages=-1"), "expected a number"),
        (("revoke",), "say which keys"),
        (("revoke", "1a2b3c4d", "--user", "ann"), "say which keys"),
        (("revoke", "1a2b3c4d"), "there is no key '1a2b3c4d'"),
        (("revoke", "--user", "ann"), "there is no key of 'ann'"),
    ],
)
def test_what_cannot_be_done_is_said(
    keys: Keys, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = keys(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert keys("list", "--json")[1] == "[]\n", "nothing was made"


def test_a_directory_that_cannot_be_written_is_named(
    keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file")
    code, _, err = keys("add", "ann")
    assert code == 2
    assert str(tmp_path / "data") in err


def test_keys_are_where_the_configuration_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIE_DATA_DIR", raising=False)
    (tmp_path / "pie.toml").write_text('[server]\ndata_dir = "here"\n')
    assert main(["keys", "add", "ann", "--config", str(tmp_path / "pie.toml")]) == 0
    assert (tmp_path / "here" / "keys.db").exists()
    capsys.readouterr()


# ---- a server ------------------------------------------------------------------------


def with_key(url: str, key: str, *arguments: object) -> Done:
    environment = {**os.environ, "PIE_SERVER": url, "PIE_KEY": key}
    return run_from_the_start([*map(str, arguments)], environment)


def test_an_address_that_others_reach_needs_a_key(pie: Pie, tmp_path: Path) -> None:
    arguments = ("serve", "--host", "0.0.0.0", "--port", 0, "--data-dir", tmp_path)
    done = pie(*arguments)
    assert (done.code, done.out) == (2, "")
    assert f"pie keys add NAME --data-dir {tmp_path}" in done.err
    assert "--keys off" in done.err


def test_commands_send_a_key_that_may_be_revoked(
    torch_is_there: None, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    assert main(["keys", "add", "ann", "--data-dir", str(data)]) == 0
    with serving(data, "--keys", "on") as (_, url, stderr):
        banner = ""
        while "keys are" not in banner:
            banner = stderr.readline()
        assert "keys are on: 1 is known" in banner
        made: Any = json.loads(
            run_from_the_start(
                ["keys", "add", "bob", "--json", "--data-dir", str(data)],
                dict(os.environ),
            ).out
        )
        key = made["key"]
        program = write(tmp_path, "hello", "return 'hello'")
        refused = ask(url, "deploy", program)
        assert refused.code == 1
        assert "this server asks for a key" in refused.err
        assert "--key or PIE_KEY" in refused.err
        assert ask(url, "deploy", "--key", key, program).code == 0
        assert with_key(url, key, "launch", "hello").out == "hello\n"
        run_from_the_start(
            ["keys", "revoke", made["id"], "--data-dir", str(data)], dict(os.environ)
        )
        gone = with_key(url, key, "launch", "hello")
        assert gone.code == 1
        assert "was revoked" in gone.err
