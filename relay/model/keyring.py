"""The cluster's keys: a ring of secrets, the first of which signs while all of them verify, with one subkey per purpose.

Rotation: add the new key last on every core, move it first, remove the old one after 24 hours.
"""

from __future__ import annotations

import enum
import hmac
import os
import re
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
MAC_BYTES = 32
_NONCE_BYTES = 12
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Purpose(enum.StrEnum):
    """What a subkey is for. A value made for one purpose never passes for another."""

    GRANT = "grant"
    CONNECTION_KEY = "connectionKey"
    NATIVE_TOKEN = "nativeToken"  # noqa: S105
    CURSOR = "cursor"


class Keyring:
    """Never shows a secret: not in `repr`, not in errors."""

    __slots__ = ("_ciphers", "_ids", "_subkeys")

    def __init__(self, keys: Iterable[tuple[str, bytes]]) -> None:
        """`keys`: (id, 32 bytes), the signing key first. Raises ValueError for an empty ring, a double or ill-formed id, a wrong length."""
        self._subkeys: dict[tuple[str, str], bytes] = {}
        self._ciphers: dict[str, AESGCM] = {}
        ids = []
        for key_id, secret in keys:
            if not _KEY_ID.fullmatch(key_id) or key_id in ids:
                raise ValueError("a key id must be unique and 1 to 32 characters of [A-Za-z0-9_-]")
            if len(secret) != KEY_BYTES:
                raise ValueError(f"key {key_id!r} must be {KEY_BYTES} bytes, is {len(secret)}")
            ids.append(key_id)
            for purpose in Purpose:
                # RFC 5869; the input is uniformly random already, so no salt is needed (section 3.1).
                derived = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"tidegate " + purpose.encode()).derive(secret)
                self._subkeys[purpose, key_id] = derived
            self._ciphers[key_id] = AESGCM(self._subkeys[Purpose.NATIVE_TOKEN, key_id])
        if not ids:
            raise ValueError("a keyring needs at least one key")
        self._ids = tuple(ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The signing key first."""
        return self._ids

    def sign(self, purpose: str, data: bytes) -> tuple[str, bytes]:
        """(id of the key that signed, HMAC-SHA-256 of 32 bytes)."""
        key_id = self._ids[0]
        return key_id, hmac.digest(self._subkeys[purpose, key_id], data, "sha256")

    def mac(self, purpose: str, key_id: str, data: bytes) -> bytes | None:
        """What `sign` would have answered under `key_id`; None if the ring does not hold it."""
        subkey = self._subkeys.get((purpose, key_id))
        return None if subkey is None else hmac.digest(subkey, data, "sha256")

    def verify(self, purpose: str, key_id: str, data: bytes, mac: bytes) -> bool:
        """Constant time in the content of `mac`."""
        expected = self.mac(purpose, key_id, data)
        return expected is not None and hmac.compare_digest(expected, mac)

    def seal(self, data: bytes, associated: bytes = b"") -> bytes:
        """Encrypt and authenticate (AES-256-GCM). `associated` must be given to `open` unchanged and is not in the result.

        The nonce is drawn here and nowhere else: one repeated nonce would give the key away, so it is no argument. At 2³² seals a key
        should be rotated (NIST SP 800-38D, 8.3).
        """
        key_id = self._ids[0].encode()
        head = bytes((len(key_id),)) + key_id
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + self._ciphers[self._ids[0]].encrypt(nonce, data, head + associated)

    def open(self, sealed: bytes, associated: bytes = b"") -> bytes | None:
        """None for anything that `seal` with a key of this ring did not make."""
        if not sealed or len(sealed) < 1 + sealed[0] + _NONCE_BYTES:
            return None
        end = 1 + sealed[0]
        head, nonce, ciphertext = sealed[:end], sealed[end : end + _NONCE_BYTES], sealed[end + _NONCE_BYTES :]
        cipher = self._ciphers.get(head[1:].decode("ascii", "replace"))
        if cipher is None:
            return None
        try:
            return cipher.decrypt(nonce, ciphertext, head + associated)
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._ids)})"
