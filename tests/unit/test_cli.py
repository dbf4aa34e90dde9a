"""The command line: errors are one line that says what to do."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner

from certs.authority import Authority
from certs.policy import Policy
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


def test_what_an_edge_cannot_start_with_is_said_in_one_line_before_it_starts(tmp_path: Path) -> None:
    authority = Authority.create(Policy("relay.test", ("127.0.0.1",)))
    (tmp_path / "ca.pem").write_bytes(authority.root.certificate_pem())
    for name, leaf in {"server": authority.server(["127.0.0.1"]), "edge": authority.edge("eu", "edge-1")}.items():
        (tmp_path / f"{name}.pem").write_bytes(leaf.certificate_pem())
        (tmp_path / f"{name}.key").write_bytes(leaf.private_key_pem())
        (tmp_path / f"{name}.key").chmod(stat.S_IRUSR)
    good = """
        site = "eu"
        node = "edge-1"
        [listen]
        port = 0
        certificate = "server.pem"
        private_key = "server.key"
        [link]
        cores = ["127.0.0.1:9000"]
        trust_domain = "relay.test"
        certificate = "edge.pem"
        private_key = "edge.key"
        ca = "ca.pem"
    """
    (tmp_path / "good.toml").write_text(good)
    done = run(app, ["config", "check", "-c", str(tmp_path / "good.toml")])
    assert (done.exit_code, "a valid edge configuration" in done.output) == (0, True), done.output
    (tmp_path / "typed.toml").write_text(good.replace('"127.0.0.1:9000"', "9000"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "without.toml").write_text(good.replace('certificate = "server.pem"', "").replace('private_key = "server.key"', ""))
    (tmp_path / "mixed.toml").write_text(good.replace('"server.key"', '"edge.key"'))
    for name, says in (
        ("binary", "TOML"),
        ("typed", "link.cores"),
        ("without", "listen: certificate and private_key must be set"),
        ("mixed", "is not the key of"),
    ):
        for command in (["config", "check"], ["edge", "--workers", "2"]):
            done = run(app, [*command, "-c", str(tmp_path / f"{name}.toml")])
            assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1), done.output
            assert f"{name}.toml" in done.output
            assert says in done.output or "UTF-8" in done.output
    done = run(app, ["edge", "-c", str(tmp_path / "good.toml"), "--workers", "2"])
    assert (done.exit_code, "listen.port" in done.output) == (2, True)


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
