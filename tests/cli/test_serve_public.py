"""A server as others reach it: with TLS, keys and what it offers programs."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from pie_trio.cli import main
from tests.cli.conftest import Done, Pie, run_from_the_start
from tests.cli.test_serve import ask, write
from tests.cli.test_signals import started

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    Against = Callable[..., Done]

HIDDEN = """queue = Queue()
(page,) = queue.alloc_kvpages(1)
(output,) = await queue.forward_text([1], pages=[page], outputs=[Output([0], hidden=True)])
return len(output.hidden[0])"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for 127.0.0.1, and a data directory with an admin's key in ``key``."""
    folder = tmp_path_factory.mktemp("public")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(folder / "cert.pem", append=number > 0)
    return folder


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    """Of an administrator."""
    words = ["keys", "add", "root", "--scope", "admin", "--json"]
    done = run_from_the_start([*words, "--data-dir", str(folder)], dict(os.environ))
    return str(json.loads(done.out)["key"])


@pytest.fixture(scope="module")
def server(torch_is_there: None, folder: Path, key: str) -> Generator[str]:
    """The URL of a server with TLS and keys."""
    flags = ("--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem")
    arguments = ("serve", "--port", 0, "--keys", "on", "--data-dir", folder, *flags)
    with started(*arguments, "--warm", 0, PIE_MODEL="") as (_, stdout, stderr):
        url = stdout.readline().strip()
        assert url.startswith("https://127.0.0.1:"), stderr.read()
        yield url


@pytest.fixture
def against(
    server: str, folder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> Against:
    """Runs commands against the server, with the key and the authority."""
    monkeypatch.setenv("PIE_KEY", key)
    monkeypatch.setenv("PIE_CA_FILE", str(folder / "ca.pem"))
    return partial(ask, server)


def test_commands_speak_tls(
    against: Against, server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "openai_chat" in against("programs").out
    monkeypatch.delenv("PIE_CA_FILE")
    refused = against("programs")
    assert refused.code == 2
    assert "is not to be trusted" in refused.err
    assert "--ca-file" in refused.err
    assert against("programs", "--ca-file", folder / "ca.pem").code == 0
    plain = ask(server.replace("https:", "http:"), "programs")
    assert plain.code != 0
    assert "this port speaks TLS" in plain.err


def test_an_admin_acts_for_a_user(against: Against, tmp_path: Path) -> None:
    against("deploy", "--user", "ann", write(tmp_path, "hers", "return get_owner()"))
    assert "hers" not in against("programs").out
    assert "hers" in against("programs", "--user", "ann").out
    launched = against("launch", "--user", "ann", "hers")
    assert launched.out == "ann\n", launched.err
    assert against("launch", "hers").code == 1
    ended = json.loads(against("ps", "--all", "--json", "--user", "ann").out)
    assert [one["program"] for one in ended] == ["hers"]
    wrong = against("ps", "--user", "a/b")
    assert wrong.code == 1
    assert "no name of a user" in wrong.err


def test_hidden_states_are_for_what_comes_with_pie_unless_they_are_offered(
    against: Against, tmp_path: Path
) -> None:
    against("deploy", write(tmp_path, "looks", HIDDEN))
    refused = against("launch", "looks")
    assert refused.code == 1
    assert "needs the grant `logits`" in refused.err
    assert "--allow-logits on" in refused.err
    embedded = against("launch", "--json", "openai_embeddings", "--input", '"hello"')
    assert embedded.code == 0, embedded.err
    events: list[Any] = [json.loads(line) for line in embedded.out.splitlines()]
    assert events[-1]["state"] == "succeeded"


@pytest.mark.parametrize(
    ("cert", "key_file", "words"),
    [
        ("none.pem", "key.pem", "cannot read the TLS file"),
        ("key.pem", "cert.pem", "no certificate and its key"),
        ("ca.pem", "key.pem", "mismatch"),
    ],
)
def test_files_that_are_none_are_told_before_a_model_is_loaded(
    pie: Pie, folder: Path, tmp_path: Path, cert: str, key_file: str, words: str
) -> None:
    flags = ("--tls-cert", folder / cert, "--tls-key", folder / key_file)
    done = pie("serve", "--data-dir", tmp_path, "--model", tmp_path / "none", *flags)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert str(folder) in done.err


def test_one_file_alone_is_no_tls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--tls-cert", "cert.pem"]) == 2
    assert "both --tls-cert and --tls-key" in capsys.readouterr().err
