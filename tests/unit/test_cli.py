"""The command line: errors are one line that says what to do."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner

from tidegate.cli import app
from tidegate.dev import DevError, _pair

KEY = "shop.web:0123456789abcdef0123456789abcdef"
run = CliRunner().invoke


def test_token_is_a_jwt_of_the_key_with_canonical_capability() -> None:
    capability = '{"chat:*": ["subscribe","publish"]}'
    done = run(app, ["token", "--client-id", "bob", "--capability", capability, "--ttl", "60"], env={"TIDEGATE_KEY": KEY})
    assert done.exit_code == 0
    claims = jwt.decode(done.stdout.strip(), KEY.partition(":")[2], algorithms=["HS256"])
    assert jwt.get_unverified_header(done.stdout.strip())["kid"] == "shop.web"
    assert claims["exp"] - claims["iat"] == 60
    assert (claims["x-ably-clientId"], claims["x-ably-capability"]) == ("bob", '{"chat:*":["publish","subscribe"]}')


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["token"], "TIDEGATE_KEY"),
        (["token", "--key", "nonsense"], "appId.keyId:secret"),
        (["token", "--key", KEY, "--capability", "{"], "capability"),
        (["token", "--key-file", "/nowhere/key"], "/nowhere/key"),
        (["config", "check", "-c", "/nowhere.toml"], "/nowhere.toml"),
        (["edge", "-c", "/nowhere.toml"], "/nowhere.toml"),
        (["core", "-c", "/nowhere.toml"], "/nowhere.toml"),
        (["dev", "--port", "0", "--rule", "nonsense"], "FILTER=TOPIC"),
    ],
)
def test_mistakes_are_answered_in_one_line_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = run(app, arguments, env={"TIDEGATE_KEY": ""})
    assert done.exit_code == 2, done.output
    assert says.lower() in done.output.lower()
    assert len(done.output.strip().splitlines()) == 1


def test_dev_says_which_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(app, ["dev", "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 2
    assert "--port" in done.output


def test_config_check_tells_an_edge_from_a_core_and_names_file_field_and_reason(tmp_path: Path) -> None:
    for name in ("edge.pem", "ca.pem", "edge.key"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(stat.S_IRUSR)
    good = """
        site = "eu"
        node = "edge-1"
        [link]
        cores = ["127.0.0.1:9000"]
        trust_domain = "relay.test"
        certificate = "edge.pem"
        private_key = "edge.key"
        ca = "ca.pem"
    """
    (tmp_path / "good.toml").write_text(good)
    (tmp_path / "bad.toml").write_text(good.replace('"127.0.0.1:9000"', "9000"))
    done = run(app, ["config", "check", "-c", str(tmp_path / "good.toml")])
    assert (done.exit_code, "edge" in done.output) == (0, True), done.output
    done = run(app, ["config", "check", "-c", str(tmp_path / "bad.toml")])
    assert done.exit_code == 2
    assert "bad.toml" in done.output
    assert "link.cores" in done.output


def test_every_command_shows_help_with_an_example() -> None:
    for command in ("dev", "edge", "core", "token"):
        done = run(app, [command, "--help"])
        assert done.exit_code == 0
        assert "tidegate " + command in " ".join(done.output.split())


def test_pairs_split_at_the_first_equals_sign() -> None:
    assert _pair("^a=b", "--rule", "FILTER=TOPIC") == ("^a", "b")
    assert json.dumps(_pair("t=c:#{key}", "--mapping", "TOPIC=CHANNEL")) == '["t", "c:#{key}"]'
    with pytest.raises(DevError):
        _pair("=x", "--rule", "FILTER=TOPIC")
