"""Connection ids and keys. The id is public, the key private to its client and new on every transport.

A key is `{id}!{incarnation}.{random}-{mac}`: any core can tell a key that this cluster made from one it did not (80018), without having
seen the connection. Source: Ably protocol docs, 1.6 and 6.2.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import NamedTuple

from relay.model.keyring import Keyring, Purpose

CONNECTION_ID_BYTES = 8
"""Random bytes that `new_connection_id` takes: 60 of their 64 bits make the ten characters."""
_MAC_KEPT = 16
"""Bytes of the HMAC that go into a key; RFC 2104, section 5 asks for at least half of them."""
_KEY = re.compile(r"(([A-Za-z0-9_-]{10})!(0|[1-9][0-9]{0,8})\.([A-Za-z0-9_-]{8,64}))-([A-Za-z0-9_-]{22})")


class ConnectionKey(NamedTuple):
    connection_id: str
    incarnation: int
    random: str
    """The random part, base64url without padding."""


def new_connection_id(random: bytes) -> str:
    """Ten characters of [A-Za-z0-9_-] from at least 8 random bytes. Raises ValueError when there are fewer."""
    if len(random) < CONNECTION_ID_BYTES:
        raise ValueError(f"a connection id takes {CONNECTION_ID_BYTES} random bytes")
    return base64.urlsafe_b64encode(random[:CONNECTION_ID_BYTES])[:10].decode()


def make_key(keyring: Keyring, app: str, connection_id: str, incarnation: int, random: bytes) -> str:
    """`random`: 6 to 48 bytes; 9 are plenty, since the mac is what cannot be guessed."""
    head = f"{connection_id}!{incarnation}.{_text(random)}"
    key = f"{head}-{_mac(keyring, keyring.ids[0], app, head)}"
    if not _KEY.fullmatch(key):
        raise ValueError("not a connection id, incarnation or length of random bytes that a key can carry")
    return key


def parse_key(keyring: Keyring, app: str, text: str) -> ConnectionKey | None:
    """None unless this cluster made the key for this app (80018 then). Says nothing of whether the connection still exists (80008)."""
    match = _KEY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    head, connection_id, incarnation, random, mac = match.groups()
    # Compared as text: base64url of 16 bytes leaves four bits over, and only one spelling is ours.
    if not any(hmac.compare_digest(mac, _mac(keyring, key_id, app, head)) for key_id in keyring.ids):
        return None
    return ConnectionKey(connection_id, int(incarnation), random)


def claimed_id(text: str) -> str | None:
    """The connection id that a text would be a key of, whoever made it. None if it has not the form of a key."""
    match = _KEY.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else match.group(2)


def _mac(keyring: Keyring, key_id: str, app: str, head: str) -> str:
    # `head` has no newline, so that no two pairs of app and head give the same bytes.
    mac = keyring.mac(Purpose.CONNECTION_KEY, key_id, f"{app}\n{head}".encode())
    assert mac is not None, "the key id comes from the ring"
    return _text(mac[:_MAC_KEPT])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
