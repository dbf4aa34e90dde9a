"""What the public Terraform provider (1.0) and command line (1.2) send, and what they take from the answers, as seen on the wire and kept
here, since neither can be installed wherever these tests run. `tests/e2e/test_public_tools.py` runs both where they are.

The provider keeps what it reads as its state; a field that comes back other than it was sent is an error at `apply`, or a difference in the
next `plan`. So each step here is: send, read the way it reads, compare with what the file says.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.cores import OneCore, Topic


class Tool:
    """`json` of a Go struct: empty texts and lists of `omitempty` fields are absent, absent ones are the type's zero."""

    def __init__(self) -> None:
        self.core = OneCore(Topic())
        me = self.get("/me")
        self.account = me["account"]["id"]
        assert self.account
        assert me["account"]["name"]
        assert me["token"]["id"]
        assert isinstance(me["token"]["capabilities"], list)
        assert me["user"]["id"] > 0

    def get(self, path: str) -> Any:
        answer = self.core.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, method: str, path: str, body: Any = None, *, status: int) -> Any:
        answer = self.core.ask(method, path, body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def listed(self, path: str, name: str) -> dict[str, Any]:
        """It has no way to read one app, key or namespace."""
        (found,) = [one for one in self.get(path) if one["id"] == name]
        return dict(found)

    def app(self, **more: Any) -> str:
        return str(self.send("POST", f"/accounts/{self.account}/apps", {"name": "shop", "status": "enabled", **more}, status=201)["id"])


@pytest.fixture
def tool() -> Tool:
    return Tool()


def test_an_app(tool):
    app = tool.app(tlsOnly=True, apnsUseSandboxEndpoint=False)
    read = tool.listed(f"/accounts/{tool.account}/apps", app)
    assert (read["name"], read["status"], read["tlsOnly"], read["apnsUseSandboxEndpoint"]) == ("shop", "enabled", True, False)
    assert read["accountId"] == tool.account
    assert [type(read[name]) for name in ("created", "modified")] == [int, int]
    texts = ("fcmProjectId", "apnsAuthType", "apnsSigningKeyId", "apnsIssuerKey", "apnsTopicHeader")
    assert all(read[name] is None for name in texts), "what is not set is null: an empty text would be a difference"
    assert read["fcmServiceAccountConfigured"] is read["apnsCertificateConfigured"] is read["apnsSigningKeyConfigured"] is False
    changed = {"name": "shop 2", "status": "disabled", "tlsOnly": False, "apnsUseSandboxEndpoint": False}
    tool.send("PATCH", f"/apps/{app}", changed, status=200)
    assert changed.items() <= tool.listed(f"/accounts/{tool.account}/apps", app).items()
    tool.send("DELETE", f"/apps/{app}", status=204)
    assert tool.core.ask("DELETE", f"/apps/{app}").status_code == 404, "which it takes for done"
    assert all(one["id"] != app for one in tool.get(f"/accounts/{tool.account}/apps"))


def test_a_key(tool):
    app = tool.app()
    asked = {"chat:*": ["history", "subscribe"], "*": ["statistics", "channel-metadata"]}
    made = tool.send("POST", f"/apps/{app}/keys", {"name": "web", "revocableTokens": True, "capability": asked}, status=201)
    read = tool.listed(f"/apps/{app}/keys", made["id"])
    assert read == made
    assert read["key"].startswith(f"{app}.{made['id']}:"), "the provider and the command line take the secret from the list"
    assert (read["status"], read["revocableTokens"], read["name"]) == (0, True, "web")
    assert {name: sorted(operations) for name, operations in read["capability"].items()} == {
        name: sorted(operations) for name, operations in asked.items()
    }
    tool.send(
        "PATCH", f"/apps/{app}/keys/{made['id']}", {"name": "web", "revocableTokens": False, "capability": {"a": ["publish"]}}, status=200
    )
    assert tool.listed(f"/apps/{app}/keys", made["id"])["capability"] == {"a": ["publish"]}
    tool.send("POST", f"/apps/{app}/keys/{made['id']}/revoke", status=200)
    assert tool.listed(f"/apps/{app}/keys", made["id"])["status"] == 1, "which it takes for gone"
    assert tool.core.ask("POST", f"/apps/{app}/keys/{made['id']}/revoke").status_code == 404


FLAGS = (
    "identified",
    "persisted",
    "persistLast",
    "pushEnabled",
    "tlsOnly",
    "exposeTimeserial",
    "mutableMessages",
    "populateChannelRegistry",
)


def test_a_namespace(tool):
    app = tool.app()
    path = f"/apps/{app}/namespaces"
    tool.send("POST", path, {"id": "chat", **dict.fromkeys(FLAGS, False)}, status=201)
    read = tool.listed(path, "chat")
    assert all(read[name] is False for name in (*FLAGS, "authenticated", "batchingEnabled", "conflationEnabled"))
    on = dict.fromkeys(FLAGS, True)
    tool.send("PATCH", f"{path}/chat", {**on, "batchingEnabled": True, "batchingInterval": 100, "conflationEnabled": False}, status=200)
    read = tool.listed(path, "chat")
    assert {
        **on,
        "authenticated": True,
        "batchingEnabled": True,
        "batchingInterval": 100,
        "conflationEnabled": False,
    }.items() <= read.items()
    # To conflation: what it does not use it does not send.
    key = {"conflationEnabled": True, "conflationInterval": 1000, "conflationKey": "#{message.name}"}
    tool.send("PATCH", f"{path}/chat", {**on, "batchingEnabled": False, **key}, status=200)
    read = tool.listed(path, "chat")
    assert (key | {"batchingEnabled": False, "batchingInterval": None}).items() <= read.items()
    tool.send("DELETE", f"{path}/chat", status=204)
    assert tool.core.ask("DELETE", f"{path}/chat").status_code == 404


def test_the_command_lines_channel_rule(tool):
    app = tool.app()
    path = f"/apps/{app}/namespaces"
    sent = {"authenticated": True, "id": "chat", "mutableMessages": False, "persisted": False, "tlsOnly": False, "exposeTimeSerial": True}
    made = tool.send("POST", path, sent, status=201)
    assert (made["authenticated"], made["identified"], made["exposeTimeserial"]) == (True, True, True)
    # It sends back what it was shown, `identified` included, with one thing changed.
    changed = tool.send("PATCH", f"{path}/chat", {**made, "authenticated": False}, status=200)
    assert (changed["authenticated"], changed["identified"]) == (False, False)


def a_rule(**target: Any) -> dict[str, Any]:
    return {
        "status": "enabled",
        "ruleType": "kafka",
        "requestMode": "single",
        "source": {"channelFilter": "", "type": "channel.message"},
        "target": {"routingKey": "t:#{channelName}", "brokers": [], "enveloped": False, "format": "", **target},
    }


def test_a_kafka_rule(tool):
    app = tool.app()
    path = f"/apps/{app}/rules"
    made = tool.send("POST", path, a_rule(auth={"sasl": {"mechanism": "plain"}}), status=201)
    read = tool.get(f"{path}/{made['id']}")
    assert (read["status"], read["requestMode"], read["ruleType"], read["source"]["channelFilter"]) == ("enabled", "single", "kafka", "")
    target, sasl = read["target"], read["target"]["auth"]["sasl"]
    assert (target["routingKey"], target["brokers"], target["enveloped"], target["format"]) == ("t:#{channelName}", [], False, "json")
    assert (sasl["mechanism"], sasl["username"] or "", sasl["password"] or "") == ("plain", "", "")
    changed = a_rule(auth={"sasl": {"mechanism": "plain", "username": "u", "password": "p"}}, format="msgpack", enveloped=True)
    changed |= {"status": "disabled", "source": {"channelFilter": "^a", "type": "channel.presence"}}
    tool.send("PATCH", f"{path}/{made['id']}", changed, status=200)
    read = tool.get(f"{path}/{made['id']}")
    assert {name: read[name] for name in changed} == changed
    # The command line: the target as it was shown with a part of it changed, and no ruleType.
    tool.send("PATCH", f"{path}/{made['id']}", {"target": {**read["target"], "routingKey": "u"}, "status": "enabled"}, status=200)
    assert tool.get(f"{path}/{made['id']}")["target"] == {**changed["target"], "routingKey": "u"}
    tool.send("DELETE", f"{path}/{made['id']}", status=204)
    for method in ("GET", "DELETE"):
        assert tool.core.ask(method, f"{path}/{made['id']}").status_code == 404
    assert tool.get(f"/apps/{app}/queues") == []


def test_a_kafka_rule_into_another_cluster(tool):
    """The provider knows of neither `tls` nor `ca`: what it does not send stays, and nothing it does not know makes a difference."""
    app = tool.app()
    path = f"/apps/{app}/rules"
    login = {"mechanism": "scram-sha-512", "username": "u", "password": "p"}
    brokers = ["kafka-1.example:9093", "kafka-2.example:9093"]
    sent = a_rule(brokers=brokers, auth={"sasl": login}, format="json")
    made = tool.send("POST", path, sent, status=201)

    def read() -> Any:
        found = tool.get(f"{path}/{made['id']}")
        return {name: found[name] for name in sent} | {"target": {name: found["target"][name] for name in sent["target"]}}

    assert read() == sent
    (rule,) = tool.core.pipelines.rules_to_run(lambda *why: pytest.fail(str(why)))
    assert (rule.cluster.tls, rule.cluster.sasl.password.reveal()) == (True, "p"), "a password crosses the network encrypted"
    authority = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
    tool.send("PATCH", f"{path}/{made['id']}", {"ruleType": "kafka", "target": {"ca": authority}}, status=200)
    assert read() == sent
    sent["target"]["auth"] = {"sasl": {**login, "password": "another"}}
    tool.send("PATCH", f"{path}/{made['id']}", sent, status=200)
    assert read() == sent
    (rule,) = tool.core.pipelines.rules_to_run(lambda *why: pytest.fail(str(why)))
    assert (rule.cluster.ca, rule.cluster.sasl.password.reveal()) == (authority, "another")
    # Nobody there, as it can say it: refused, and not sent in clear to whoever listens.
    nobody = a_rule(brokers=brokers, auth={"sasl": {"mechanism": "plain"}})
    answer = tool.core.ask("POST", path, nobody)
    assert (answer.status_code, set(answer.json()["details"])) == (422, {"target.auth.sasl.username"})


def test_refusals_have_the_shape_that_they_print(tool):
    app = tool.app()
    wrong = tool.core.ask("POST", f"/apps/{app}/rules", {**a_rule(), "ruleType": "http"})
    assert (wrong.status_code, wrong.json()["details"].keys()) == (422, {"ruleType"})
    for answer in (wrong, tool.core.ask("GET", "/me", token="nobody"), tool.core.ask("POST", f"/apps/{app}/queues", {"name": "q"})):
        found = answer.json()
        assert (type(found["message"]), type(found["code"]), found["statusCode"]) == (str, int, answer.status_code)
        assert found["href"].startswith("https://")
