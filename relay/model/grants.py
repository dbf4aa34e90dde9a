"""Grants: a core's signed word that an edge may act for one session, and until when. Any core accepts it, from that edge only.

To the edge a grant is bytes. Layout: one byte length of key id, key id, HMAC-SHA-256 (32 bytes), msgpack array of `Grant`. The HMAC covers
everything but itself.
"""

from __future__ import annotations

import msgspec

from relay.model.errors import RelayError
from relay.model.keyring import MAC_BYTES, Keyring, Purpose
from relay.model.limits import PROTOCOL


class Grant(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    edge: str
    """SPIFFE id of the edge's certificate."""
    boot: str
    """Boot id of the edge process: a restarted edge starts with no grants."""
    session: str
    realtime: bool
    incarnation: int
    """Of the connection, +1 per resume; a core that knows a later one refuses this."""
    app: str
    key_name: str
    client_id: str | None
    """None: anonymous; `*`: any; otherwise the identity."""
    capability: str
    """Canonical JSON text."""
    issued: int | None
    """When the token was issued, in milliseconds; None for API keys."""
    revocation_key: str | None
    token_expires: int | None
    """In milliseconds; None for API keys."""
    expires: int
    """Of the grant, in milliseconds."""
    plain: bool = False
    """The client came without TLS."""


class GrantRefused(RelayError):  # noqa: N818 - named for what happened, as the other refusals are
    """`reason` is the label of the counter: bad_mac, wrong_edge, expired, malformed."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, message)
        self.reason = reason


_decoder = msgspec.msgpack.Decoder(Grant)
_encoder = msgspec.msgpack.Encoder()


def seal_grant(keyring: Keyring, grant: Grant) -> bytes:
    payload = _encoder.encode(grant)
    key_id = keyring.ids[0].encode()
    head = bytes((len(key_id),)) + key_id
    _, mac = keyring.sign(Purpose.GRANT, head + payload)
    return head + mac + payload


def open_grant(keyring: Keyring, data: bytes, *, edge: str, boot: str, now_ms: int) -> Grant:
    """The grant, if this cluster made it for this very edge process and it still holds. Raises GrantRefused (40100, 40142).

    Whether the session was closed, resumed elsewhere or revoked since is for the caller, who knows of it.
    """
    if len(data) < 1 + MAC_BYTES or len(data) < 1 + data[0] + MAC_BYTES:
        raise GrantRefused(40100, "malformed", "Invalid grant")
    end = 1 + data[0]
    head, mac, payload = data[:end], data[end : end + MAC_BYTES], data[end + MAC_BYTES :]
    if not keyring.verify(Purpose.GRANT, head[1:].decode("ascii", "replace"), head + payload, mac):
        raise GrantRefused(40100, "bad_mac", "Invalid grant")
    try:
        grant = _decoder.decode(payload)
    except msgspec.MsgspecError:
        raise GrantRefused(40100, "malformed", "Invalid grant") from None
    if grant.edge != edge or grant.boot != boot:
        raise GrantRefused(40100, "wrong_edge", "The grant was given to another edge")
    expires = grant.expires if grant.token_expires is None else min(grant.expires, grant.token_expires)
    if now_ms >= expires + PROTOCOL.expiry_leeway_ms:
        raise GrantRefused(40142, "expired", "Token expired")
    return grant
