"""What a client says when it connects: query parameters, credentials, protocol version. Source: specification RTN2, RSC7, RSA3."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec

from edge.ably.protocol import HIGHEST_PROTOCOL, LOWEST_PROTOCOL
from relay.model.credentials import key_of_basic, token_of_bearer
from relay.model.errors import RelayError

_MAX_PARAMS = 100
_CLOCK_LEEWAY_MS = 5_000


@dataclass(frozen=True, slots=True)
class Credential:
    """As presented. `basic`: an API key rather than a token."""

    text: str
    basic: bool

    def __repr__(self) -> str:
        return f"Credential(<hidden>, basic={self.basic})"


@dataclass(frozen=True, slots=True)
class ConnectParams:
    version: int
    msgpack: bool
    echo: bool
    heartbeats: bool
    """Whether HEARTBEAT messages, rather than WebSocket pings alone, keep the connection from looking idle."""
    idle_interval_ms: int | None
    client_id: str | None
    resume: str | None
    recover: str | None
    credential: Credential | None
    remain_present_ms: int | None = None


def parse_query(query: str) -> dict[str, str]:
    """The last value of each parameter; `+` is a space, escapes are UTF-8. Raises 40000 beyond 100 parameters."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=_MAX_PARAMS))
    except ValueError:
        raise RelayError(40000, f"more than {_MAX_PARAMS} query parameters") from None


def is_msgpack(params: Mapping[str, str]) -> bool:
    """A missing or unknown `format` means JSON."""
    return params.get("format") == "msgpack"


def protocol_version(text: str | None) -> int:
    """The version to speak: missing means the lowest, a later one the highest known. Raises 40017 for version 1 and for nonsense."""
    if text is None:
        return LOWEST_PROTOCOL
    whole, _, fraction = text.partition(".")
    # isascii: other digits (Arabic, superscript) are digits to `isdigit` too. Four of them are enough for any version.
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 4 and (not fraction or (fraction.isascii() and fraction.isdigit()))):
        raise RelayError(40017, "unsupported protocol version")
    version = int(whole)
    if version < LOWEST_PROTOCOL:
        raise RelayError(40017, f"protocol version 1 is no longer supported; this server speaks {LOWEST_PROTOCOL} to {HIGHEST_PROTOCOL}")
    return min(version, HIGHEST_PROTOCOL)


def parse_connect(params: Mapping[str, str], headers: Mapping[str, str]) -> ConnectParams:
    """Raises RelayError: 40017 (version), 40012 (clientId), 40003 (remainPresentFor), 40101 (Authorization header not readable)."""
    client_id = params.get("clientId")
    if client_id is not None and client_id in ("", "*"):
        raise RelayError(40012, "invalid clientId: it may be neither empty nor '*'")
    return ConnectParams(
        version=protocol_version(params.get("v")),
        msgpack=is_msgpack(params),
        echo=params.get("echo") != "false",
        heartbeats=params.get("heartbeats") != "false",
        idle_interval_ms=_idle_interval(params.get("heartbeatInterval")),
        client_id=client_id,
        resume=params.get("resume") or None,
        recover=params.get("recover") or None,
        credential=credential_of(params, headers),
        remain_present_ms=_remain_present(params.get("remainPresentFor")),
    )


def _idle_interval(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 9:
        return None
    return min(max(int(text), 5_000), 1_800_000)


def _remain_present(text: str | None) -> int | None:
    """Raises RelayError 40003. Less than a second is taken for a second; a core cuts what is too long."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise RelayError(40003, "invalid remainPresentFor: not a number of milliseconds")
    return max(int(text), 1_000)


def credential_of(params: Mapping[str, str], headers: Mapping[str, str]) -> Credential | None:
    """Query before header, token before key. None: nothing was presented. Raises 40101 for a header that cannot be read."""
    for name in ("accessToken", "access_token", "token"):
        if params.get(name):
            return Credential(params[name], basic=False)
    if params.get("key"):
        return Credential(params["key"], basic=True)
    header = headers.get("authorization")
    if not header:
        return None
    scheme, _, value = header.partition(" ")
    value = value.strip()
    match scheme.lower():
        case "basic":
            key = key_of_basic(value)
            if key is None:
                raise RelayError(40101, "invalid credentials: the Authorization header is not readable")
            return Credential(key, basic=True)
        case "bearer":
            return Credential(token_of_bearer(value), basic=False)
        case _:
            raise RelayError(40101, "invalid credentials: the Authorization header is neither Basic nor Bearer")


class _Expiry(msgspec.Struct):
    exp: int | float | None = None
    inner: object = msgspec.field(default=None, name="x-ably-token")


class _Header(msgspec.Struct):
    inner: object = msgspec.field(default=None, name="x-ably-token")


def is_dead(token: str, now_ms: int) -> bool:
    """Whether this JWT says of itself that it has expired: refused here, so that the link stays quiet. Nothing is verified.

    False for all that cannot be told without a core: other tokens, and JWTs that carry another token inside.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return False
    try:
        head = msgspec.json.decode(_segment(parts[0]), type=_Header)
        claims = msgspec.json.decode(_segment(parts[1]), type=_Expiry)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    if claims.exp is None or claims.inner is not None or head.inner is not None:
        return False
    return claims.exp * 1000 + _CLOCK_LEEWAY_MS < now_ms


def _segment(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
