"""`POST /keys/{keyName}/requestToken`: what is signed, and the checks in their order. Source: Ably protocol docs, 7.3.

Whether a nonce was used before is for the caller to know (40105); `check_token_request` answers it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.identity import WILDCARD, identify
from relay.model.limits import PROTOCOL

DEFAULT_TTL_MS = 3_600_000
MIN_NONCE = 16
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """What a token may be made from. `capability` is already intersected with the key's; `nonce` may be None if the request is unsigned."""

    key_name: str
    ttl_ms: int
    capability: Capability
    client_id: str | None
    nonce: str | None


def canonical_text(key_name: object, ttl: object, capability: object, client_id: object, timestamp: object, nonce: object) -> str:
    """The text that is signed: six values as they were sent, a newline after each, absent ones empty."""
    return "".join(f"{_text(value)}\n" for value in (key_name, ttl, capability, client_id, timestamp, nonce))


def mac(secret: str, text: str) -> str:
    """base64 of HMAC-SHA-256 over `text`, under the key's secret."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256)).decode()


def check_token_request(
    body: object,
    *,
    key_name: str,
    secret: str,
    key_capability: Capability,
    now_ms: int,
    authenticated: bool = False,
    revocable: bool = False,
) -> CheckedRequest:
    """`body` as decoded, `key_name` from the path, the rest from the key. `authenticated`: by Basic auth with this very key, so that the
    request need not be signed. Raises RelayError 40000, 40003, 40012, 40101, 40104, 40160.
    """
    if not isinstance(body, dict):
        raise RelayError(40000, "Invalid token request; must be an object")
    get = body.get
    if get("keyName", key_name) != key_name:
        raise RelayError(40101, "The token request names another key")
    signature = get("mac")
    if signature is not None or not authenticated:
        text = canonical_text(key_name, *(get(field) for field in ("ttl", "capability", "clientId", "timestamp", "nonce")))
        if not isinstance(signature, str) or not hmac.compare_digest(
            signature.encode("utf-8", "surrogatepass"), mac(secret, text).encode()
        ):
            raise RelayError(40101, "Invalid mac in token request")
    timestamp, nonce = get("timestamp"), get("nonce")
    if timestamp is not None or not authenticated:
        sent = _integer(timestamp)
        if sent is None or abs(now_ms - sent) > PROTOCOL.max_clock_difference_ms:
            raise RelayError(40104, "Timestamp not current")
    if (nonce is not None or not authenticated) and (not isinstance(nonce, str) or len(nonce) < MIN_NONCE):
        raise RelayError(40003, f"Invalid nonce; must be a string of at least {MIN_NONCE} characters")
    ttl_ms = _ttl(get("ttl"), PROTOCOL.max_revocable_token_ttl_ms if revocable else PROTOCOL.max_token_ttl_ms)
    client_id = get("clientId")
    client_id = WILDCARD if client_id == WILDCARD else identify(client_id, None, basic=False)
    asked = get("capability")
    capability = key_capability if asked in (None, "") else Capability.parse(asked).intersect(key_capability)
    if not capability:
        raise RelayError(40160, "The requested capability has nothing in common with the key's", 401)
    return CheckedRequest(key_name, ttl_ms, capability, client_id, nonce)


def _ttl(value: object, longest: int) -> int:
    if value is None or value == "":
        return min(DEFAULT_TTL_MS, longest)
    ttl_ms = _integer(value)
    if ttl_ms is None or not 0 < ttl_ms <= longest:
        raise RelayError(40003, f"Invalid ttl; must be an integer of 1 to {longest} ms")
    return ttl_ms


def _integer(value: object) -> int | None:
    """An integer, or the decimal text of one."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value if type(value) is int else None


def _text(value: object) -> str:
    if value is None:
        return ""
    # JavaScript has one kind of number and writes a whole one without a point.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
