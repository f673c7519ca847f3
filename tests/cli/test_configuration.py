"""Flags over the environment over a file over defaults."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.cli import main
from pie_trio.cli.serve import add_serve_options, configure
from pie_trio.cli.settings import SECTIONS, SETTINGS, known_keys
from pie_trio.config import (
    SERVER_LIMITS,
    ControlConfig,
    InstanceLimits,
    OfferedGrants,
    SharedLimits,
)
from pie_trio.config_file import read_config_file
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pie_trio.cli.configuration import Configuration

    Configure = Callable[..., Configuration]


@pytest.fixture
def configured(tmp_path: Path) -> Configure:
    """Returns what flags, an environment and a file come to."""

    def read(
        text: str = "", *flags: str, environment: Mapping[str, str] | None = None
    ) -> Configuration:
        (tmp_path / "pie.toml").write_text(text)
        parser = argparse.ArgumentParser()
        add_serve_options(parser)
        options = parser.parse_args(["--config", str(tmp_path / "pie.toml"), *flags])
        return configure(options, environment or {})

    return read


def test_flags_go_over_the_environment_over_the_file_over_defaults(
    configured: Configure, tmp_path: Path
) -> None:
    text = "[server]\ngrace = 2\nwarm = 2\nport = 2\n"
    environment = {"PIE_WARM": "3", "PIE_PORT": "3"}
    found = configured(text, "--port", "4", environment=environment)
    values = {
        name: found.values[f"server.{name}"] for name in ("grace", "warm", "port")
    }
    assert [value.value for value in values.values()] == [2.0, 3, 4]
    origins = [value.origin for value in values.values()]
    assert origins == [f"{tmp_path}/pie.toml:2", "PIE_WARM", "--port"]
    assert found.values["server.max_instances"].origin == "default"
    assert found.options.max_instances == ControlConfig().max_instances
    assert (found.options.grace, found.options.port) == (2.0, 4)


def test_a_file_may_say_what_every_flag_says(configured: Configure) -> None:
    parser = argparse.ArgumentParser()
    add_serve_options(parser)
    flags = {action.dest for action in parser._actions} - {"help", "config"}
    of_models = {"model", "adapters", "kv_pages", "dtype", "threads", "kernels"}
    of_models |= {"quantize", "kv_memory", "device", "tensor_parallel", "replicas"}
    in_file = {setting.dest for setting in SETTINGS if setting.dest}
    assert flags - of_models - {"user_limits", "server_limits"} == in_file
    assert {setting.name.rpartition(".")[0] for setting in SETTINGS} | {"model"} == (
        set(SECTIONS)
    )


def test_how_many_share_a_model_is_said_of_each(configured: Configure) -> None:
    text = "[[model]]\nname = 'a'\ndirectory = '.'\ntensor_parallel = 2\n"
    text += "[[model]]\nname = 'b'\ndirectory = '.'\n"
    assert [model.tensor_parallel for model in configured(text).models()] == [2, 1]
    environment = {"PIE_TENSOR_PARALLEL": "4"}
    found = configured(text, environment=environment).models()
    assert [model.tensor_parallel for model in found] == [4, 4]
    with pytest.raises(ConfigError, match="expected 1 or more, got 0"):
        configured(text.replace("= 2", "= 0"))


def test_how_often_a_model_is_loaded_is_said_of_each(configured: Configure) -> None:
    text = "[[model]]\nname = 'a'\ndirectory = '.'\nreplicas = 3\n"
    text += "[[model]]\nname = 'b'\ndirectory = '.'\n"
    assert [model.replicas for model in configured(text).models()] == [3, 1]
    found = configured(text, "--replicas", "2").models()
    assert [model.replicas for model in found] == [2, 2]
    with pytest.raises(ConfigError, match="expected 1 or more, got 0"):
        configured(text.replace("= 3", "= 0"))


def test_numbers_without_flags_reach_what_they_configure(configured: Configure) -> None:
    found = configured(
        "[control]\nmax_batch = 7\npolicy = 'eager'\n"
        "[limits.instance]\nmax_pages = 5\nmax_http_bytes = 'none'\n"
        "[limits.user]\npages = 11\n",
        *("--user-limit", "queues=3"),
    )
    control = found.over("control", ControlConfig())
    assert (control.max_batch, control.policy) == (7, "eager")
    limits = found.over("limits.instance", InstanceLimits())
    assert (limits.max_pages, limits.max_http_bytes) == (5, None)
    assert limits.max_queues == InstanceLimits().max_queues
    shared = found.over("limits.user", SharedLimits())
    assert (shared.pages, shared.queues) == (11, 3)
    assert shared.embeds == SharedLimits().embeds


def test_with_keys_the_default_offers_nothing_that_concerns_others(
    configured: Configure,
) -> None:
    alone, shared = configured(), configured("[server]\nhost = '0.0.0.0'\n")
    assert alone.over("grants", OfferedGrants()) == OfferedGrants()
    offered = shared.over("grants", OfferedGrants())
    assert offered == OfferedGrants(logits=False, publish=False, topics=False)
    assert configured(environment={"PIE_KEYS": "on"})["grants.logits"] is False
    assert configured("", "--host", "0.0.0.0", "--keys", "off")["grants.topics"] is True


def test_grants_are_offered_by_each_source(configured: Configure) -> None:
    text = "[keys]\nmode = 'on'\n[grants]\nlogits = true\nspawn = false\n"
    environment = {"PIE_ALLOW_TOPICS": "on", "PIE_ALLOW_LOGITS": "off"}
    found = configured(text, "--allow-publish", "on", environment=environment)
    offered = found.over("grants", OfferedGrants())
    assert offered == OfferedGrants(logits=False, spawn=False)
    for wrong in ("[grants]\nlogits = 'on'", "[grants]\nlogits = 1"):
        with pytest.raises(ConfigError, match="logits must be true or false"):
            configured(wrong)
    with pytest.raises(ConfigError, match="PIE_ALLOW_SPAWN: expected on or off"):
        configured(environment={"PIE_ALLOW_SPAWN": "1"})


def test_with_keys_a_user_has_a_part_of_the_instances(configured: Configure) -> None:
    def limits(*flags: str) -> tuple[int, int]:
        found = configured("", "--max-instances", "100", *flags)
        user = found.over("limits.user", SharedLimits())
        return user.instances, found.over("limits.server", SERVER_LIMITS).instances

    assert limits() == (100, 100)
    assert limits("--keys", "on") == (25, 100)
    assert limits("--keys", "on", "--user-limit", "instances=70") == (70, 100)
    assert limits("--server-limit", "instances=60") == (100, 60)


def test_tls_takes_both_of_its_files(configured: Configure, tmp_path: Path) -> None:
    for text in ("tls_cert = 'a.pem'", "tls_key = 'a.pem'"):
        with pytest.raises(ConfigError, match="both --tls-cert and --tls-key"):
            configured(f"[server]\n{text}\n")
    found = configured("[server]\ntls_cert = 'a.pem'\n", "--tls-key", "b.pem")
    assert found.options.tls_cert == tmp_path / "a.pem"
    assert found.options.tls_key == Path("b.pem")


def test_models_are_tables_and_flags_hold_for_all(
    configured: Configure, tmp_path: Path
) -> None:
    text = (
        '[[model]]\nname = "a"\ndirectory = "models/a=b"\nkv_pages = 100\n'
        '[model.adapters]\npoet = "adapters/poet"\n'
        '[[model]]\ndirectory = "/models/other"\ndtype = "bfloat16"\n'
    )
    first, second = configured(text, "--threads", "2").models()
    assert (first.name, first.directory) == ("a", tmp_path / "models/a=b")
    assert (first.num_pages, first.dtype, first.num_threads) == (100, "float32", 2)
    assert first.adapters == (("poet", tmp_path / "adapters/poet"),)
    assert (second.name, second.directory) == ("other", Path("/models/other"))
    assert (second.num_pages, second.dtype, second.num_threads) == (None, "bfloat16", 2)
    (named,) = configured(text, "--model", "c=/models/c").models()
    assert (named.name, named.num_pages, named.adapters) == ("c", None, ())
    environment = {"PIE_MODEL": "d=/models/d", "PIE_KV_PAGES": "9"}
    (named,) = configured(text, environment=environment).models()
    assert (named.name, named.num_pages) == ("d", 9)
    first, second = configured(text, environment={"PIE_KV_PAGES": "9"}).models()
    assert (first.num_pages, second.num_pages) == (9, 9)


def test_two_models_of_one_name_are_refused(configured: Configure) -> None:
    text = '[[model]]\ndirectory = "/a/x"\n[[model]]\ndirectory = "/b/x"\n'
    with pytest.raises(ConfigError, match="two models are called x"):
        configured(text).models()


def test_paths_of_a_file_are_beside_it(configured: Configure, tmp_path: Path) -> None:
    found = configured('[server]\ndata_dir = "data"\nuds = "~/pie.sock"\n')
    assert found.options.data_dir == tmp_path / "data"
    assert found.options.store == tmp_path / "data" / "store.db"
    assert found.options.uds == Path.home() / "pie.sock"
    assert found.options.host is None, "with a unix socket, TCP is asked for by name"


def test_lists_of_the_environment_have_commas(configured: Configure) -> None:
    environment = {
        "PIE_ALLOW_HTTP": "a.example, b.example",
        "PIE_USER_LIMIT": "pages=3",
    }
    found = configured("[server]\nallow_http = ['c.example']", environment=environment)
    assert found.options.allow_http == ["a.example", "b.example"]
    assert found["limits.user.pages"] == 3


def test_an_empty_variable_says_nothing(configured: Configure) -> None:
    assert configured(environment={"PIE_PORT": ""})["server.port"] == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[server]\nprot = 1", r"pie\.toml:3: \[server\] has no 'prot': .* 'port'\?"),
        ("[server]\ndata-dir = 'x'", "do you mean 'data_dir'"),
        ("[srver]\nport = 1", r"toml:1: the file has no 'srver': .* 'server'\?"),
        ("[server]\nxyz = 1", "has no 'xyz'; there are host, port"),
        ("port = 1", r"the file has no 'port': it belongs into \[server\]"),
        ("[server]\ntimeout = 1", r"'timeout': it belongs into \[limits.instance\]"),
        ("[limits]\npages = 1", r"'pages': it belongs into \[limits.user\]"),
        ("[limits.user]\npags = 1", r"toml:2: \[limits.user\] has no 'pags'.*'pages'"),
        ("[[model]]\n[[model]]\ndir = 'x'", r"toml:3: \[\[model\]\] has no 'dir'"),
        ("[server]\nport = '80'", r"port must be a whole number, got a text: '80'"),
        ("[server]\nport = true", "a whole number, got true or false"),
        ("[server]\nport = 1.5", "a whole number, got a number"),
        ("[server]\nport = -1", "toml:2: port: expected 0 or more, got -1"),
        ("[server]\nhost = 3", "host must be a text, got a whole number"),
        ("[server]\nallow_http = 'x'", "allow_http must be a list, got a text"),
        ("[server]\nallow_http = [1]", "must be a list of texts"),
        ("[server]\ngrace = 0", "grace: expected a positive number of seconds"),
        ("[server]\nuds = 2020-01-01", "must be a text, got a time"),
        ("[keys]\nmode = 'yes'", "mode: expected auto, on, off, got 'yes'"),
        ("[connections]\nmax_connections = 0", "must be 1 or more, got 0"),
        ("[limits.clients]\nheartbeat_seconds = 0", r"must be 0.001 or more, got 0"),
        ("[limits.user]\npages = 'none'", "must be a whole number, got a text"),
        ("[limits.user]\npages = -1", "must be 0 or more"),
        ("server = 3", "server must be a table, got a whole number"),
        ("[model]\nname = 'x'", r"each as \[\[model\]\], got a table"),
        ("[[model]]\nadapters = {x = 3}", "x must be a text"),
        ("[[model]]\ndtype = 'int4'", "dtype: expected float32, bfloat16, auto"),
        ("[server\n", "is no TOML: .* line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    configured: Configure, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(text)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PIE_PORT": "x"}, "PIE_PORT: expected a number, got 'x'"),
        ({"PIE_KEYS": "yes"}, "PIE_KEYS: expected auto, on, off"),
        ({"PIE_USER_LIMIT": "pags=3"}, "PIE_USER_LIMIT pags=3: .*'pages'"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    configured: Configure, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(environment=environment)


@pytest.mark.parametrize("data", [b"\xff", None], ids=["no UTF-8", "no file"])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / "pie.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"pie\.toml"):
        read_config_file(tmp_path / "pie.toml")


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["config", "show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration comes from the environment of the tests."""
    for name in ("PIE_CONFIG", "PIE_DATA_DIR", "PIE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_shown_is_a_file_that_configures_the_same(
    quiet: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "one.toml", tmp_path / "two.toml"
    first.write_text(
        "[server]\nport = 0\nallow_http = ['a\"b\\\\c']\n[limits.instance]\nmax_http_bytes = 'none'\n"
        "[[model]]\ndirectory = '/models/x'\n[model.adapters]\n'a b' = '/adapters/y'\n"
    )
    second.write_text(show(capsys, "--config", first, "--grace", 3))
    assert "# --grace" in second.read_text()
    assert f"# {first}:2" in second.read_text()

    def values(*arguments: object) -> Any:
        shown = json.loads(show(capsys, "--json", *arguments))
        del shown["file"]
        tables = [*shown.pop("model"), *shown.values()]
        return [{key: one["value"] for key, one in t.items()} for t in tables]

    assert values("--config", first, "--grace", 3) == values("--config", second)


def test_what_is_shown_tells_where_it_comes_from(
    quiet: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIE_PORT", "81")
    shown = json.loads(show(capsys, "--json", "--kv-pages", 7))
    assert shown["server"]["port"] == {"value": 81, "from": "PIE_PORT"}
    assert shown["server"]["host"] == {"value": "127.0.0.1", "from": "default"}
    (model,) = shown["model"]
    assert model["kv_pages"] == {"value": 7, "from": "--kv-pages"}
    assert model["name"] == {"value": "pie-tiny", "from": "default"}


def test_every_table_is_known_by_its_keys() -> None:
    assert set(known_keys()[()]) == {"model", "server", "keys", "control", "limits"} | {
        *("connections", "grants")
    }
