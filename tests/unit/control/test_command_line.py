"""`tidegate apps`, `keys`, `namespaces`, `tokens`, `audit` and `can` against a Control API on a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import structlog
from typer.testing import CliRunner

from relay.runtime.listener import Listener, Refusal
from tests.unit.control.cores import SECRET, OneCore, Topic
from tests.unit.control.test_pipelines import RULE
from tidegate.cli import app as cli


class Served:
    def __init__(self, url: str, core: OneCore) -> None:
        self.environment = {"TIDEGATE_CONTROL_URL": url, "TIDEGATE_ACCESS_TOKEN": f"root.{SECRET}"}
        self.core = core

    def say(self, *arguments: str, code: int = 0, **environment: str) -> str:
        done = CliRunner().invoke(cli, list(arguments), env=self.environment | environment)
        assert done.exit_code == code, done.output
        return done.output

    def tell(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.say(*arguments, "--json", code=code))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # The core's log would stand between the lines of the command.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    core = OneCore(Topic())
    core.now_ms = int(time.time() * 1000)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Listener:
        return await Listener(context=None, app=core.app, make_listener=lambda *_: Refusal(404)).start("127.0.0.1", 0)

    listener = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield Served(f"http://127.0.0.1:{listener.port}", core)
    asyncio.run_coroutine_threadsafe(listener.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    structlog.reset_defaults()


def test_apps_and_keys(served):
    app = served.tell("apps", "create", "web")["id"]
    assert app in [one["id"] for one in served.tell("apps", "list")]
    assert "web" in served.say("apps", "list")
    assert served.tell("apps", "change", app, "--status", "disabled", "--tls-only")["tlsOnly"] is True
    key = served.tell("keys", "create", app, "--name", "k", "--capability", '{"chat:*":["publish"]}')
    name = f"{app}.{key['id']}"
    assert key["key"].startswith(f"{name}:")
    table = served.say("keys", "list", app)
    assert "enabled" in table
    assert '"chat:*"' in table
    assert served.tell("keys", "change", name, "--capability", '{"a":["subscribe"]}')["capability"] == {"a": ["subscribe"]}
    assert served.tell("keys", "rotate", name)["key"] != key["key"]
    assert re.search(rf"^key: {re.escape(name)}:\S{{43}}$", served.say("keys", "rotate", name), re.MULTILINE), "to be copied"
    served.say("keys", "revoke", name)
    assert served.tell("keys", "list", app)[0]["status"] == 1
    served.say("apps", "delete", app, "--yes")
    assert "There is no app" in served.say("keys", "list", app, code=2)


def test_namespaces_tokens_and_audit(served):
    app = served.tell("apps", "create", "audited")["id"]
    made = served.tell("namespaces", "create", app, "chat", "--set", "persisted=true", "--set", "conflationKey=#{message.name}")
    assert (made["persisted"], made["conflationKey"]) == (True, "#{message.name}")
    served.tell("namespaces", "change", app, "chat", "--set", "persisted=false")
    served.say("namespaces", "delete", app, "chat")
    token = served.tell("tokens", "create", "ci", "--scope", "reader", "--days", "1")
    assert token["expires"] > token["created"]
    assert "Access denied" in served.say("tokens", "list", TIDEGATE_ACCESS_TOKEN=token["token"], code=2)
    served.say("tokens", "revoke", token["id"])
    assert "TIDEGATE_ACCESS_TOKEN" in served.say("apps", "list", TIDEGATE_ACCESS_TOKEN=token["token"], code=2)
    entries = served.tell("audit", "--app", app)
    assert [one["action"] for one in entries] == ["namespace.delete", "namespace.change", "namespace.create", "app.create"]
    table = served.say("audit", "--app", app)
    assert "persisted: yes → no" in table
    assert "root (token)" in table


def test_tokens_of_clients_are_revoked_and_listed(served):
    app = served.tell("apps", "create", "revoking")["id"]
    key = served.tell("keys", "create", app, "--capability", '{"*":["*"]}')["id"]
    name = f"{app}.{key}"
    targets = ["--client-id", "bob", "--channel", "chat:*", "--revocation-key", "g"]
    made = served.tell("revocations", "create", name, *targets, "--reauth-margin")
    assert (made["targets"], made["status"]) == (["clientId:bob", "channel:chat:*", "revocationKey:g"], "pending")
    served.say("revocations", "create", name, "--client-id", "ann")
    assert served.tell("revocations", "list", app, "--target", "clientId:bob") == [made]
    assert "active" in served.say("revocations", "list", app)
    assert "at least one" in served.say("revocations", "create", name, code=2)
    assert served.tell("audit", "--action", "revocation.")[0]["by"]["id"] == "root"


def test_can_does_not_ask_for_secrets(served):
    app = served.tell("apps", "create", "quiet")["id"]
    key = served.tell("keys", "create", app, "--capability", '{"*":["*"]}')["id"]
    served.say("can", "publish", "x", "--key", f"{app}.{key}")
    assert served.tell("audit", "--app", app, "--action", "key.list") == []


def test_rules_and_mappings_are_made_from_files(served, tmp_path):
    app = served.tell("apps", "create", "piped")["id"]
    for kind, body, change in (
        ("rules", RULE, {"target": {"routingKey": "other"}}),
        ("mappings", {"topics": ["orders"], "channel": "orders:#{key}"}, {"channel": "other"}),
    ):
        path = tmp_path / kind
        path.write_text(json.dumps(body))
        made = served.tell(kind, "create", app, "--from", str(path))
        assert served.tell(kind, "list", app) == [made]
        path.write_text(json.dumps(change))
        served.say(kind, "change", app, made["id"], "--from", str(path))
        assert "other" in served.say(kind, "show", app, made["id"])
        assert "other" in served.say(kind, "list", app)
        served.say(kind, "delete", app, made["id"])
        assert served.tell(kind, "list", app) == []
    assert "nowhere" in served.say("rules", "create", app, "--from", "/nowhere", code=2)


def test_mappings_are_held_and_moved(served, tmp_path):
    app = served.tell("apps", "create", "moved")["id"]
    path = tmp_path / "mapping"
    path.write_text(json.dumps({"topics": ["orders"], "channel": "orders:#{key}"}))
    name = served.tell("mappings", "create", app, "--from", str(path))["id"]
    assert served.tell("mappings", "pause", app, name)["paused"] is True
    assert "yes" in served.say("mappings", "list", app)
    assert served.tell("mappings", "resume", app, name)["paused"] is False
    for to, found in (("earliest", "earliest"), ("1700000000000", 1_700_000_000_000), ("2023-11-14T22:13:20Z", 1_700_000_000_000)):
        assert served.tell("mappings", "seek", app, name, "--to", to)["seek"]["to"] == found
    moved = served.tell("mappings", "seek", app, name, "--topic", "orders", "--partition", "3", "--offset", "42")["seek"]
    assert (moved["topic"], moved["partition"], moved["offset"], moved["number"]) == ("orders", 3, 42, 4)
    assert "--to takes" in served.say("mappings", "seek", app, name, "--to", "yesterday", code=2)


def test_what_somebody_named_does_not_steer_the_terminal(served):
    key = served.tell("apps", "create", "[red]not red[/red]")["id"]
    assert "[red]not red[/red]" in served.say("apps", "list")
    served.say("apps", "delete", key, "--yes")


def test_can_names_the_line_that_says_so(served, tmp_path):
    app = served.tell("apps", "create", "can")["id"]
    capability = '{"chat:*":["publish","subscribe"],"*:open":["history"],"*":["statistics"]}'
    key = served.tell("keys", "create", app, "--capability", capability)
    name = f"{app}.{key['id']}"
    assert served.say("can", "publish", "chat:lobby", "--key", name) == (
        f'yes: key {name} permits publish on chat:lobby by "chat:*":["publish","subscribe"]\n'
    )
    assert "only" in served.say("can", "presence", "chat:lobby", "--key", name, code=1)
    assert "no line for [meta]log" in served.say("can", "subscribe", "[meta]log", "--key", name, code=1)
    assert served.tell("can", "stats", "x", "--key", name)["permitted"] is True
    assert "no operation 'fly'" in served.say("can", "fly", "x", "--key", name, code=2)

    def token(claimed: str) -> str:
        path = tmp_path / "jwt"
        claims = {"iat": 1, "exp": 2, "x-ably-capability": claimed}
        path.write_text(jwt.encode(claims, "0" * 32, algorithm="HS256", headers={"kid": name}))
        return str(path)

    lines = served.say("can", "publish", "chat:lobby", "--jwt-file", token('{"chat:lobby":["publish"]}')).splitlines()
    assert [line.startswith("yes: ") for line in lines] == [True, True]
    lines = served.say("can", "publish", "chat:lobby", "--jwt-file", token('{"other":["*"]}'), code=1).splitlines()
    assert [line[:4] for line in lines] == ["no: ", "yes:"]
    overlap = served.say("can", "history", "chat:open", "--jwt-file", token('{"chat:*":["history"]}'), code=1)
    assert "neither lies within the other" in overlap

    served.say("namespaces", "create", app, "chat", "--set", "authenticated=true")
    assert "closed" in served.say("can", "publish", "chat:lobby", "--jwt-file", token('{"chat:*":["*"]}'), code=1)
    assert "but: " in served.say("can", "publish", "chat:lobby", "--key", name)
    assert "closed" not in served.say("can", "stats", "chats", "--key", name)

    served.say("keys", "revoke", name)
    assert "revoked" in served.say("can", "publish", "chat:lobby", "--key", name, code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["can", "publish", "x"], "one of --key"),
        (["can", "publish", "x", "--capability", "{"], "not JSON"),
        (["can", "publish", "x", "--capability", '{"a":["fly"]}'], "unknown operation"),
        (["keys", "revoke", "nonsense"], "APP.KEY"),
        (["apps", "--url", "ftp://x", "list"], "--url"),
        (["apps", "--url", "http://127.0.0.1:1", "list"], "does not answer"),
        (["apps", "--token-file", "/nowhere", "list"], "/nowhere"),
        (["namespaces", "create", "x", "y", "--set", "z"], "NAME=VALUE"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(served, arguments, says):
    said = served.say(*arguments, code=2)
    assert says in said
    assert len(said.strip().splitlines()) == 1
