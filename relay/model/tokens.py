"""Native tokens: what `requestToken` gives out. All that a core needs to know of one is sealed inside it; nothing is stored.

Form: `{appId}.{base64url}`. No ':', by which clients tell a key from a token. Source: Ably protocol docs, 7.2.
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from relay.model.keyring import Keyring

_TOKEN = re.compile(r"([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]+)")


class NativeToken(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Times in milliseconds. `client_id` is None (anonymous), `*` or an identity; `capability` canonical JSON text."""

    key_name: str
    client_id: str | None
    capability: str
    issued: int
    expires: int

    @property
    def app(self) -> str:
        return self.key_name.partition(".")[0]


_decoder = msgspec.msgpack.Decoder(NativeToken)


def seal_token(keyring: Keyring, token: NativeToken) -> str:
    app = token.app
    sealed = keyring.seal(msgspec.msgpack.encode(token), app.encode())
    return f"{app}.{base64.urlsafe_b64encode(sealed).rstrip(b'=').decode()}"


def open_token(keyring: Keyring, text: str) -> NativeToken | None:
    """None for what this cluster did not make (40101, 40143). Expired tokens are opened too: the caller has the clock (40142)."""
    match = _TOKEN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    app, body = match.groups()
    try:
        opened = keyring.open(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), app.encode())
        token = None if opened is None else _decoder.decode(opened)
    except (binascii.Error, msgspec.MsgspecError):
        return None
    return token if token is not None and token.app == app else None
