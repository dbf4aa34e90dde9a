"""Tokens for SASL OAUTHBEARER, which the driver gets by itself: whom it trusts there, and what it says when it has none."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

import msgspec
from confluent_kafka import KafkaError

NO_TOKEN = "no_token"  # noqa: S105 - a reason
_PREFIX = "Failed to acquire SASL OAUTHBEARER token: "
_LINE = re.compile(r'Failed to retrieve \w+ token from ".*?": (.*) \((-?\d+)\)$', re.DOTALL)
_REFUSALS = frozenset(
    ("invalid_request", "invalid_client", "invalid_grant", "invalid_scope", "unauthorized_client", "unsupported_grant_type")
)
"""RFC 6749 5.2. Endpoints that are overloaded or broken say other things."""
_CAUSES = {
    "certificate": "its certificate is not trusted",
    "resolve host": "the name does not resolve",
    "connect to": "nobody answers",
    "timed out": "no answer in time",
    "Terminating": "the client ends",
}
"""By what libcurl says."""


class _Refusal(msgspec.Struct):
    error: str


def token_authorities(properties: Mapping[str, Any]) -> dict[str, str]:
    """librdkafka's property for the authorities that this machine trusts, where none are named for the token endpoint. By itself
    it looks where the distribution has them on which its wheel was built (seen with 2.16), and fails everywhere else."""
    if properties.get("sasl.oauthbearer.method") != "oidc" or {"https.ca.location", "https.ca.pem"} & properties.keys():
        return {}
    paths = ssl.get_default_verify_paths()
    found = paths.cafile or paths.capath
    return {} if found is None else {"https.ca.location": found}


def why_no_token(error: KafkaError) -> tuple[str, str] | None:
    """Reason and cause, if `error` is about a token. Nothing of what the endpoint said: that may repeat what it was sent."""
    text = error.str()
    if error.code() != KafkaError._AUTHENTICATION or not text.startswith(_PREFIX):
        return None
    return _told(text.removeprefix(_PREFIX))


def without_answer(line: str) -> str:
    """The driver's log line about a token that it did not get, in the same words, and with the HTTP status (-1: no answer)."""
    found = _LINE.search(line)
    return "the token endpoint gives no token" + (f": {_told(found[1])[1]} ({found[2]})" if found else "")


def _told(said: str) -> tuple[str, str]:
    try:
        refusal = msgspec.json.decode(said, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # the last: nested ever so deeply
        cause = next((cause for words, cause in _CAUSES.items() if words in said), "what it answers is none")
        return NO_TOKEN, cause
    return ("refused_login", refusal) if refusal in _REFUSALS else (NO_TOKEN, "what it answers is none")
