"""Minting JWTs for clients, as an application's auth server would."""

from __future__ import annotations

import jwt


def mint(key: str, *, capability: str | None, client_id: str | None, ttl_s: int, now_s: int) -> str:
    """A JWT signed with `key` (`app.id:secret`). `capability` is JSON text, None for all that the key may do. Raises ValueError.

    Source: Ably JWT claims (`x-ably-capability`, `x-ably-clientId`); RFC 7519.
    """
    name, colon, secret = key.partition(":")
    if not (colon and secret and "." in name):
        raise ValueError("a key looks like appId.keyId:secret")
    claims: dict[str, object] = {"iat": now_s, "exp": now_s + ttl_s}
    if capability is not None:
        claims["x-ably-capability"] = capability
    if client_id is not None:
        claims["x-ably-clientId"] = client_id
    return jwt.encode(claims, secret, algorithm="HS256", headers={"kid": name})
