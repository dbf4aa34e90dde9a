"""The public tools for Ably's Control API, unmodified, pointed at a running core: the Terraform provider and the command line.

Neither can be installed where these tests run, in CI neither (decision 44): npm has no package `@ably/cli`, and the Go module proxy
does not give out the provider's module. So this is the one place where CI skips. Name them, and they are tried, and must be there:

    TERRAFORM_PROVIDER_ABLY=/path/to/terraform-provider-ably    the provider's binary (version 1.0); needs `terraform`
    ABLY_CLI=/path/to/ably                                      the command line (version 1.2)

What they send, and what they need of the answers, `tests/unit/control/test_public_tools.py` keeps in every run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_control import Api, until
from tests.journeys.real import RealWorld
from tests.support.kafka import skip_or_fail
from tests.support.other_cluster import PASSWORD, USER, OtherCluster, other_cluster
from tests.support.product import ROOT, Product
from tests.support.ruled import records_of

PROVIDER = os.environ.get("TERRAFORM_PROVIDER_ABLY") or shutil.which("terraform-provider-ably")
CLI = os.environ.get("ABLY_CLI") or shutil.which("ably")
CONNECTED = 4

needs_provider = pytest.mark.skipif(
    not PROVIDER, reason="the Ably provider of Terraform is in no package registry of these tests: TERRAFORM_PROVIDER_ABLY names it"
)
needs_cli = pytest.mark.skipif(not CLI, reason="the Ably command line is not on npm (no @ably/cli): ABLY_CLI names it")


@pytest.fixture
def terraform(relay: Product, tmp_path: Path) -> Terraform:
    if not shutil.which("terraform"):
        skip_or_fail("terraform is missing, which the Ably provider is for")
    return Terraform(tmp_path, relay, app_name=f"terraform {time.time_ns()}")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OtherCluster]:
    with other_cluster(tmp_path / "other") as cluster:
        yield cluster


class Terraform:
    def __init__(self, directory: Path, relay: Product, **variables: str) -> None:
        assert PROVIDER
        self.directory = directory
        # The provider must be called so in the directory that Terraform is told of.
        (directory / "providers").mkdir()
        (directory / "providers" / "terraform-provider-ably").symlink_to(Path(PROVIDER).resolve())
        overrides = f'provider_installation {{\n  dev_overrides {{ "ably/ably" = "{directory}/providers" }}\n  direct {{}}\n}}\n'
        (directory / "terraform.rc").write_text(overrides)
        for path in (ROOT / "examples" / "terraform").glob("*.tf"):
            shutil.copy(path, directory)
        self.variables = {"control_url": f"{relay.found['admins'][0]}/v1", **variables}
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "TF_CLI_CONFIG_FILE": str(directory / "terraform.rc"),
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",
            "ABLY_ACCOUNT_TOKEN": relay.found["accessToken"],
        }

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            ["terraform", *command], cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, f"terraform {' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def does(self, command: str, *options: str, code: int = 0, **variables: str) -> str:
        self.variables |= variables
        return self.run(command, "-input=false", "-no-color", *options, *self.given(), code=code)

    def given(self) -> list[str]:
        return [f"-var={name}={value}" for name, value in self.variables.items()]

    def apply(self, **variables: str) -> dict[str, Any]:
        self.does("apply", "-auto-approve", **variables)
        self.changes_nothing()
        return {name: one["value"] for name, one in json.loads(self.run("output", "-json")).items()}

    def changes_nothing(self) -> None:
        self.does("plan", "-detailed-exitcode", code=0)


@needs_provider
def test_terraform_makes_changes_imports_and_deletes(relay: Product, terraform: Terraform) -> None:
    api, world = Api(relay), RealWorld(relay)
    try:
        made = terraform.apply()
        app = made["app_id"]
        world.client(key=made["web_key"], edge=1).gets(CONNECTED)
        key = api.ask("GET", f"/apps/{app}/keys")[1][0]
        assert (key["key"], key["capability"]["chat:*"]) == (made["web_key"], ["history", "subscribe"])
        rule = api.ask("GET", f"/apps/{app}/rules/{made['rule_id']}")[1]
        assert (rule["target"]["brokers"], rule["target"]["enveloped"], rule["source"]["channelFilter"]) == ([], False, "^chat:")

        terraform.apply(app_name=f"{terraform.variables['app_name']} 2", web_may='["publish"]', rule_status="disabled")
        assert api.ask("GET", f"/apps/{app}/keys")[1][0]["capability"] == {"chat:*": ["publish"], "news": ["subscribe"]}
        assert api.ask("GET", f"/apps/{app}/rules/{made['rule_id']}")[1]["status"] == "disabled"

        resources = {
            "ably_app.shop": app,
            "ably_api_key.web": f"{app},{key['id']}",
            "ably_namespace.account": f"{app},account",
            "ably_namespace.chat": f"{app},chat",
            "ably_rule_kafka.chat": f"{app},{made['rule_id']}",
        }
        terraform.run("state", "rm", *resources)
        for resource, known_as in resources.items():
            terraform.run("import", "-input=false", *terraform.given(), resource, known_as)
        terraform.changes_nothing()

        # What somebody else changes is seen, and put back.
        assert api.ask("PATCH", f"/apps/{app}/namespaces/account", {"authenticated": False})[0] == 200
        terraform.does("plan", "-detailed-exitcode", code=2)
        terraform.apply()
        assert {one["id"]: one["identified"] for one in api.ask("GET", f"/apps/{app}/namespaces")[1]} == {"account": True, "chat": False}

        terraform.does("destroy", "-auto-approve")
        assert app not in [one["id"] for one in api.ask("GET", "/accounts/tidegate/apps")[1]]
    finally:
        world.close()
    assert made["web_key"].partition(":")[2] not in relay.log_path.read_text(errors="replace")


@needs_provider
def test_terraforms_rule_writes_to_another_cluster(relay: Product, terraform: Terraform, other: OtherCluster) -> None:
    """R7.2, R7.4. Over TLS, for which the provider does not ask; the authority, of which it does not know, stays what it was told to be."""
    topic, api, world = other.create("chat-archive", 1), Api(relay), RealWorld(relay)
    resource, rejected = "ably_rule_kafka.archive[0]", "another password"
    try:
        made = terraform.apply(archive_brokers=f'["127.0.0.1:{other.secure}"]', archive_username=USER, archive_password=PASSWORD)
        app, rule = made["app_id"], made["archive_rule_id"]
        path = f"/apps/{app}/rules/{rule}"
        key = api.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["publish"]}})["key"]
        published: list[str] = []

        def publish() -> None:
            published.append(f"message {len(published)}")
            status, answer = world.rest("POST", "/channels/chat%3Alobby/messages", {"data": published[-1]}, credential=key)
            assert status == 201, answer

        def states() -> set[tuple[str, str]]:
            """Of all partitions, on both cores."""
            found = [api.ask("GET", "/status", core=core)[1]["remoteRules"] for core in (0, 1)]
            return {(each["state"], each["reason"]) for some in found for each in some if each["rule"] == f"{app}/{rule}"}

        until(lambda: api.ask("GET", path)[1]["running"], 5.0)
        publish()
        until(lambda: ("parked", "tls_failed") in states(), 30.0)
        assert api.ask("PATCH", path, {"ruleType": "kafka", "target": {"ca": other.ca}})[0] == 200
        until(lambda: states() == {("running", "")}, 30.0)
        terraform.changes_nothing()

        terraform.apply(archive_password=rejected)
        publish()
        until(lambda: ("parked", "refused_login") in states(), 30.0)
        terraform.apply(archive_password=PASSWORD)
        publish()
        until(lambda: states() == {("running", "")}, 30.0)
        until(lambda: len(list(records_of(other.plain, topic, {}))) >= len(published), 30.0)
        found = list(records_of(other.plain, topic, {}))
        assert ([each.value().decode() for each in found], {each.key() for each in found}) == (published, {b"chat:lobby"})

        terraform.run("state", "rm", resource)
        terraform.run("import", "-input=false", *terraform.given(), resource, f"{app},{rule}")
        terraform.changes_nothing()
        terraform.does("destroy", "-auto-approve")
    finally:
        world.close()
    assert not any(secret in relay.log_path.read_text(errors="replace") for secret in (PASSWORD, rejected))


class Ably:
    def __init__(self, directory: Path, relay: Product) -> None:
        host = relay.found["admins"][0].partition("//")[2].replace("127.0.0.1", "localhost")  # it takes what is called so for plain HTTP
        self.environment = {
            **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
            "HOME": str(directory),
            "ABLY_CLI_CONFIG_DIR": str(directory),
            "ABLY_ACCESS_TOKEN": relay.found["accessToken"],
            "ABLY_CONTROL_HOST": host,
            "ABLY_SKIP_NEW_VERSION_CHECK": "1",
            "CI": "true",
        }

    def says(self, *command: str, code: int = 0) -> Any:
        done = subprocess.run([str(CLI), *command, "--json"], env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"ably {' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return next((one for one in found if one.get("type") in ("result", "error")), found[-1] if found else {})


@needs_cli
def test_the_command_line_manages_apps_keys_channel_rules_and_integrations(relay: Product, tmp_path: Path) -> None:
    ably, api, world = Ably(tmp_path, relay), Api(relay), RealWorld(relay)
    name = f"cli {time.time_ns()}"
    try:
        app = ably.says("apps", "create", name)["app"]["id"]
        assert name in [one["name"] for one in ably.says("apps", "list")["apps"]]
        ably.says("apps", "update", app, "--name", f"{name} 2", "--tls-only")

        key = ably.says("auth", "keys", "create", "web", "--app", app, "--capabilities", '{"chat:*":["subscribe"]}')["key"]
        world.client(key=key["key"]).gets(CONNECTED)
        ably.says("auth", "keys", "update", key["keyName"], "--capabilities", "publish,subscribe")
        shown = ably.says("auth", "keys", "get", key["keyName"])["key"]
        assert sorted(shown["capability"]["*"]) == ["publish", "subscribe"]
        assert [one["id"] for one in ably.says("auth", "keys", "list", "--app", app)["keys"]] == [key["id"]]
        ably.says("auth", "keys", "revoke", key["keyName"], "--force")
        assert api.ask("GET", f"/apps/{app}/keys")[1][0]["status"] == 1

        ably.says("apps", "rules", "create", "private", "--app", app, "--authenticated")
        ably.says("apps", "rules", "update", "private", "--app", app, "--tls-only")
        (rule,) = ably.says("apps", "rules", "list", "--app", app)["rules"]
        assert (rule["id"], rule["authenticated"], rule["tlsOnly"]) == ("private", True, True)
        ably.says("apps", "rules", "delete", "private", "--app", app, "--force")

        body = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": "", "type": "channel.message"}}
        made = api.made(f"/apps/{app}/rules", body | {"target": {"routingKey": "t:#{channelName}"}})["id"]
        assert [one["id"] for one in ably.says("integrations", "list", "--app", app)["integrations"]] == [made]
        ably.says("integrations", "update", made, "--app", app, "--status", "disabled", "--target", '{"routingKey":"u"}')
        shown = ably.says("integrations", "get", made, "--app", app)["rule"]
        assert (shown["status"], shown["target"]["routingKey"]) == ("disabled", "u")
        ably.says("integrations", "delete", made, "--app", app, "--force")
        assert api.ask("GET", f"/apps/{app}/rules")[1] == []
        assert ably.says("queues", "list", "--app", app)["queues"] == []
        ably.says("apps", "delete", app, "--force")
        assert app not in [one["id"] for one in api.ask("GET", "/accounts/tidegate/apps")[1]]
    finally:
        world.close()
