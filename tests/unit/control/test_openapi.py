"""The OpenAPI document against the running API: what it says is served, and nothing that it permits breaks it."""

from __future__ import annotations

import schemathesis
import structlog.testing
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from core.control.openapi import document
from core.registry import open_secret
from tests.unit.control.cores import SECRET, OneCore, Topic
from tests.unit.control.test_pipelines import RULE

CORE = OneCore(Topic())
SCHEMA = schemathesis.openapi.from_asgi("/v1/openapi.json", CORE.app)
PASSWORD = "a password of a rule"
WITH_PASSWORD = RULE | {"target": RULE["target"] | {"auth": {"sasl": {"mechanism": "plain", "username": "u", "password": PASSWORD}}}}
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
    ignored_auth,
    negative_data_rejection,
]


@SCHEMA.parametrize()
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation_holds_to_its_description(case) -> None:
    _aim(case)
    case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer root.{SECRET}"})


@SCHEMA.parametrize()
@settings(max_examples=4, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_operation_shows_a_secret_without_the_scope(case) -> None:
    """Also not what the request itself has just made or changed, and neither in what the core logs."""
    _aim(case)
    if not any("password" in entry.data for entry in CORE.control.ledger.of("rule")):
        app = CORE.an_app(f"secrets {len(CORE.topic.records)}")
        CORE.made(f"/apps/{app}/rules", WITH_PASSWORD)
        CORE.made(f"/apps/{app}/keys", {"capability": {"*": ["*"]}})
    with structlog.testing.capture_logs() as logged:
        answer = case.call(headers={"Authorization": f"Bearer staff.{SECRET}"})
    found = f"{answer.text}{answer.headers}{logged}"
    for kind, field in (("key", "secret"), ("rule", "password")):
        known = [entry for entry in CORE.control.ledger.of(kind) if field in entry.data]
        for entry in known:
            secret = open_secret(CORE.control.keyring, entry.key, entry.data[field])
            assert secret
            assert len(secret) < 16 or secret not in found, "shorter ones are random texts of this test's own"


def _aim(case) -> None:
    """Random ids would only ever find 404: three of four requests go to what is there, made anew when a test has deleted it."""
    parameters = case.path_parameters or {}
    if "account" in parameters:
        parameters["account"] = "tidegate"
    if "app" in parameters and len(str(parameters["app"])) % 4:
        apps = [entry.name for entry in CORE.control.ledger.of("app")]
        parameters["app"] = apps[0] if apps else CORE.an_app("fixed")
        for kind, body in (
            ("rule", WITH_PASSWORD),
            ("mapping", {"topics": ["orders"], "channel": "orders:#{key}"}),
            ("namespace", {"id": "chat", "authenticated": True}),
        ):
            if kind in parameters:
                found = [entry.name.partition(":")[2] for entry in CORE.control.ledger.of(kind, f"{parameters['app']}:")]
                parameters[kind] = found[0] if found else CORE.made(f"/apps/{parameters['app']}/{kind}s", body)["id"]
        if "key" in parameters:
            keys = [entry for entry in CORE.control.ledger.of("key", f"{parameters['app']}.") if entry.data["status"] == 0]
            parameters["key"] = (
                keys[0].name.split(".")[1] if keys else CORE.made(f"/apps/{parameters['app']}/keys", {"capability": {"*": ["*"]}})["id"]
            )
    if "token" in parameters and len(str(parameters["token"])) % 4:
        live = [entry.name for entry in CORE.control.ledger.of("token") if entry.data["status"] == 0]
        parameters["token"] = live[0] if live else CORE.made("/tokens", {"name": "t", "scopes": ["reader"]})["id"]


def test_the_document_is_served_under_both_prefixes() -> None:
    for prefix in ("/v1", "/api/v1"):
        assert CORE.ask("GET", "/openapi.json", prefix=prefix).json() == document()
