"""How API keys and tokens are written, and where they hide in an Authorization header. Source: Ably protocol docs, 7.1 and 7.2."""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}")
_NATIVE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class ApiKey(NamedTuple):
    """`name` is `{appId}.{keyId}`. `repr` leaves the secret out."""

    app: str
    name: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey({self.name})"


def is_key_name(text: object) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def split_key(text: str) -> ApiKey | None:
    """`{appId}.{keyId}:{secret}`, split at the first ':'. None if it has another form."""
    name, colon, secret = text.partition(":")
    if not colon or not secret or not is_key_name(name):
        return None
    return ApiKey(name.partition(".")[0], name, secret)


def is_jwt(token: str) -> bool:
    """By its form: three parts (JWS) or five (JWE)."""
    return token.count(".") in (2, 4)


def key_of_basic(value: str) -> str | None:
    """What follows `Basic` in an Authorization header: base64 of the key text. None if it is not that."""
    return _unbase64(value)


def token_of_bearer(value: str) -> str:
    """What follows `Bearer`: the SDKs send base64 of the token, people the token itself. No text is both: base64 has no dots."""
    if is_jwt(value) or _NATIVE.fullmatch(value):
        return value
    decoded = _unbase64(value)
    return value if decoded is None else decoded


def client_id_of_header(value: str) -> str | None:
    """X-Ably-ClientId: base64 of the UTF-8 clientId. None if it is not that (40012)."""
    return _unbase64(value)


def _unbase64(text: str) -> str | None:
    try:
        padded = text.strip().rstrip("=").replace("-", "+").replace("_", "/").encode()
        return binascii.a2b_base64(padded + b"=" * (-len(padded) % 4), strict_mode=True).decode()
    except (binascii.Error, UnicodeError):
        return None


def basic_of_key(key: str) -> str:
    """The reverse of `key_of_basic`."""
    return base64.b64encode(key.encode()).decode()
