"""What is said of tokens that cannot be had, and whom the driver trusts when it asks for them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from core.kafka import KafkaConfig
from core.kafka.logs import log
from core.kafka.tokens import why_no_token


def failure(said: str) -> KafkaError:
    return KafkaError(KafkaError._AUTHENTICATION, f"Failed to acquire SASL OAUTHBEARER token: {said}")


@pytest.mark.parametrize(
    ("said", "reason", "cause"),
    [
        ('{"error": "invalid_client", "error_description": "no hush-hush"}', "refused_login", "invalid_client"),
        ('{"error": "hush-hush"}', "no_token", "what it answers is none"),
        ('{"error": "temporarily_unavailable"}', "no_token", "what it answers is none"),
        ('["hush-hush"]', "no_token", "what it answers is none"),
        ("<h1>hush-hush</h1>", "no_token", "what it answers is none"),
        ('{"hush-hush": ' + "[" * 1_900, "no_token", "what it answers is none"),
        ('Expected JSON response with "access_token" field', "no_token", "what it answers is none"),
        ("Failed to connect to 127.0.0.1:1 after 0 ms: Could not connect to server", "no_token", "nobody answers"),
        ("Could not resolve host: id.example", "no_token", "the name does not resolve"),
        ("SSL certificate problem: self-signed certificate", "no_token", "its certificate is not trusted"),
        ("Operation timed out after 20000 milliseconds with 0 bytes received", "no_token", "no answer in time"),
    ],
)
def test_why_there_is_no_token(said: str, reason: str, cause: str) -> None:
    """R7.9: in words of our own, for an endpoint may repeat the secret that it was sent."""
    assert why_no_token(failure(said)) == (reason, cause)


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        ('{"error": "invalid_client", "hush-hush": "(1)"}', 401, ": invalid_client (401)"),
        ('{"hush-hush": ' + "[" * 1_900, 400, ": what it answers is none (400)"),
        ("hush-hush\n(503)", 503, ": what it answers is none (503)"),
        ("Failed to connect to 127.0.0.1 port 1", -1, ": nobody answers (-1)"),
    ],
)
def test_the_drivers_own_line_goes_to_the_log_without_the_answer(
    said: str, code: int, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As it comes of the clients of the core's own cluster."""
    text = f'[thrd:background]: Failed to retrieve OIDC token from "https://id.example/token?hush-hush": {said} ({code})'
    log.error("%s [%s] %s", "OIDC", "tidegate-owner#producer-1", text)
    assert caplog.messages == [f"OIDC [tidegate-owner#producer-1] the token endpoint gives no token{shown}"]


def test_other_errors_are_about_no_token() -> None:
    assert why_no_token(KafkaError(KafkaError._AUTHENTICATION, "SASL authentication error")) is None
    assert why_no_token(KafkaError(KafkaError._TRANSPORT)) is None


def test_a_token_endpoint_is_trusted_as_this_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R7.2: the driver's own default is a file that only some distributions have."""
    file = tmp_path / "ca.pem"
    file.touch()
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(file))

    def location(**properties: str) -> str | None:
        found = KafkaConfig(brokers="b", properties={name.replace("_", "."): value for name, value in properties.items()}).client("test")
        return found.get("https.ca.location")

    assert location(sasl_oauthbearer_method="oidc") == str(file)
    assert location(sasl_oauthbearer_method="oidc", https_ca_location="/other.pem") == "/other.pem"
    assert location(sasl_oauthbearer_method="oidc", https_ca_pem="-") is None
    assert location() is None
