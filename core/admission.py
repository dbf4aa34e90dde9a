"""Admission: from a credential to what its bearer may do. Pure, and told the time.

The verifier is chosen by the credential's form and the key it names, never by a token's `alg` (RFC 8725, 3.1). Cheap checks come first
(form, key known, expiry), so that what an attacker can send at will costs less than a signature. Error codes: Ably protocol docs, 1.7, 7.

A credential that was refused is remembered for a short time, by a keyed hash: a client that tries it again and again costs one hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import warnings
from collections import OrderedDict
from typing import Any

import jwt
import msgspec

from core.registry import App, Key, Registry
from relay.link.calls import RequestToken
from relay.model.capability import Capability
from relay.model.credentials import is_jwt, is_key_name, split_key
from relay.model.errors import ErrorInfo, RelayError
from relay.model.keyring import Keyring
from relay.model.limits import PROTOCOL, CoreLimits
from relay.model.token_request import check_token_request
from relay.model.tokens import NativeToken, open_token, seal_token

# Short secrets of API keys are refused or warned about where they are configured; here they would only fill the log.
warnings.filterwarnings("ignore", category=jwt.InsecureKeyLengthWarning)

_LEEWAY_SHARE = 10
"""The leeway on a JWT's expiry is at most this part of its life: a token that was made for five seconds ends in about five seconds."""
_YEAR_10000_S = 253_402_300_800

_HS256 = jwt.PyJWS(algorithms=["HS256"])
_INVALID = "invalid JWT format"


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a credential proves. `client_id` is the token's claim (absent, `*` or a name); times are milliseconds, None for API keys."""

    app: App
    key: Key
    basic: bool
    client_id: object = None
    capability: Capability
    issued: int | None = None
    expires: int | None = None
    revocation_key: str | None = None


class UnknownCredential(RelayError):  # noqa: N818 - it says what happened
    """No such app or key *as far as this core has read*. Another core may have made it a moment ago, so that it is worth asking once."""


class Admission:
    def __init__(self, registry: Registry, keyring: Keyring, limits: CoreLimits, secret: bytes, *, insecure_basic: bool) -> None:
        """`secret`: 16 to 64 random bytes of this process. `insecure_basic`: API keys may come without TLS (dev only)."""
        self._registry = registry
        self._keyring = keyring
        self._limits = limits
        self._secret = secret
        self._insecure_basic = insecure_basic
        self._refused: OrderedDict[bytes, tuple[int, ErrorInfo]] = OrderedDict()
        self._nonces: OrderedDict[bytes, int] = OrderedDict()

    def verify(self, credential: str | None, *, basic: bool, realtime: bool, tls: bool, now_ms: int) -> Verified:
        """Raises: RelayError with the code for the client; UnknownCredential if the app or key is not known here (yet)."""
        if not credential:
            raise RelayError(40101, "No authentication information provided")
        if len(credential) > self._limits.max_credential_bytes:
            raise RelayError(40101, "Invalid credential: too long")
        digest = self._digest(credential, b"\1" if basic else b"\0", b"\1" if realtime else b"\0")
        remembered = self._refused.get(digest)
        if remembered is not None and now_ms < remembered[0]:
            raise RelayError(remembered[1].code, remembered[1].message, remembered[1].status_code)
        try:
            verified = self._basic(credential, realtime, now_ms) if basic else self._token(credential, realtime, now_ms)
        except UnknownCredential:
            raise
        except RelayError as error:
            self._remember(digest, error, now_ms)
            raise
        self._check_transport(verified, basic=basic, tls=tls)
        return verified

    def settle_unknown(self, credential: str, error: UnknownCredential, *, basic: bool, realtime: bool, now_ms: int) -> None:
        """The app or key is not known after asking, either: remember it like any other refusal."""
        self._remember(self._digest(credential, b"\1" if basic else b"\0", b"\1" if realtime else b"\0"), error, now_ms)

    def forget_refusals(self) -> None:
        """Apps or keys have changed: what was refused may now be good."""
        self._refused.clear()

    def request_token(self, call: RequestToken, now_ms: int) -> dict[str, Any]:
        """`POST /keys/{keyName}/requestToken`: TokenDetails, or RelayError. Source: Ably protocol docs, 7.3.

        A nonce is remembered by this core only. A request replayed at another core gives a second token with the same rights, within the
        two minutes in which its timestamp is current: no more than whoever signed it could have asked for.
        """
        if not is_key_name(call.key_name):
            raise RelayError(40400, "No such key")
        key = self._key(call.key_name, realtime=False)[1]
        if call.basic is not None:
            given = self.verify(call.basic, basic=True, realtime=False, tls=True, now_ms=now_ms)
            if given.key.name != key.name:
                raise RelayError(40101, "The token request names another key")
        try:
            body = msgspec.json.decode(call.body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise RelayError(40001, "Invalid body; not JSON") from None
        checked = check_token_request(
            body,
            key_name=key.name,
            secret=key.secret,
            key_capability=key.capability,
            now_ms=now_ms,
            authenticated=call.basic is not None,
            revocable=key.revocable_tokens,
        )
        if checked.nonce is not None:
            self._use_nonce(key.name, checked.nonce, now_ms)
        expires = now_ms + checked.ttl_ms
        capability = checked.capability.canonical()
        details: dict[str, Any] = {
            "token": seal_token(self._keyring, NativeToken(key.name, checked.client_id, capability, now_ms, expires)),
            "keyName": key.name,
            "issued": now_ms,
            "expires": expires,
            "capability": capability,
        }
        if checked.client_id is not None:
            details["clientId"] = checked.client_id
        return details

    # --- API keys

    def _basic(self, credential: str, realtime: bool, now_ms: int) -> Verified:
        given = split_key(credential)
        if given is None:
            raise RelayError(40101 if realtime else 40005, "Invalid key: must be of the form <app>.<key>:<secret>")
        app, key = self._key(given.name, realtime=realtime)
        # Before the status, so that nobody without the secret learns of it. In constant time: the secret cannot be guessed byte by byte.
        if not hmac.compare_digest(given.secret.encode("utf-8", "surrogatepass"), key.secret.encode()):
            raise RelayError(40101, "Invalid credentials")
        check_status(app, key, now_ms)
        return Verified(app=app, key=key, basic=True, capability=key.capability)

    def _key(self, name: str, *, realtime: bool) -> tuple[App, Key]:
        app_id, _, key_id = name.partition(".")
        app = self._registry.app(app_id)
        if app is None:
            # On realtime these are fatal codes outside the token range, so that no client goes round renewing.
            if realtime:
                raise UnknownCredential(40101, "Invalid credentials: no application found")
            raise UnknownCredential(40400, f"No application found with id {app_id}")
        key = app.keys.get(key_id)
        if key is None:
            raise UnknownCredential(40101 if realtime else 40400, "Invalid credentials: no key found", 401)
        return app, key

    # --- tokens

    def _token(self, credential: str, realtime: bool, now_ms: int) -> Verified:
        if not is_jwt(credential):
            return self._native(credential, realtime, now_ms)
        header, claims = _parse(credential)
        inner = header.get("x-ably-token", None if claims is None else claims.get("x-ably-token"))
        if inner is None:
            if claims is None:
                raise RelayError(40144, f"{_INVALID}: encrypted, and no x-ably-token in its header")
            return self._jwt(credential, header, claims, realtime, now_ms)
        if not isinstance(inner, str) or not inner:
            raise RelayError(40144, f"{_INVALID}: x-ably-token must be a string")
        # The inner token is the credential. One level only, so that a token cannot be made of many.
        if is_jwt(inner):
            inner_header, inner_claims = _parse(inner)
            if inner_claims is None or "x-ably-token" in inner_header or "x-ably-token" in inner_claims:
                raise RelayError(40144, f"{_INVALID}: the embedded token is itself an envelope")
            verified = self._jwt(inner, inner_header, inner_claims, realtime, now_ms)
            inner_ends = _seconds(inner_claims, "exp") * 1000
        else:
            verified = self._native(inner, realtime, now_ms)
            inner_ends = math.inf if verified.expires is None else verified.expires
        if claims is not None and "exp" in claims and _seconds(claims, "exp") * 1000 > inner_ends:
            raise RelayError(40144, f"{_INVALID}: the outer token outlives the embedded one")
        return verified

    def _native(self, credential: str, realtime: bool, now_ms: int) -> Verified:
        if not _NATIVE.fullmatch(credential):
            raise RelayError(40101, "Invalid token: neither an Ably token nor a JWT")
        token = open_token(self._keyring, credential)
        if token is None:
            raise RelayError(40143, "Invalid token: not recognised")
        if now_ms >= token.expires:
            raise RelayError(40142, "Token expired")
        app, key = self._key(token.key_name, realtime=realtime)
        check_status(app, key, now_ms)
        # The key may have lost rights since.
        capability = Capability.parse(token.capability).intersect(key.capability)
        if not capability:
            raise RelayError(40160, "The capability of the token has nothing in common with the key's")
        return Verified(
            app=app,
            key=key,
            basic=False,
            client_id=token.client_id,
            capability=capability,
            issued=token.issued,
            expires=token.expires,
        )

    def _jwt(self, credential: str, header: dict[str, Any], claims: dict[str, Any], realtime: bool, now_ms: int) -> Verified:
        """Source: Ably protocol docs, 7.6; RFC 7519 and 8725."""
        if header.get("alg") != "HS256" or "crit" in header or "b64" in header:
            raise RelayError(40144, f"{_INVALID}: alg must be HS256, without critical extensions")
        kid = header.get("kid")
        if not isinstance(kid, str) or not is_key_name(kid):
            raise RelayError(40144, f"{_INVALID}: kid must name a key")
        app, key = self._key(kid, realtime=realtime)
        issued, expires = _seconds(claims, "iat") * 1000, _seconds(claims, "exp") * 1000
        ends = expires + min(PROTOCOL.expiry_leeway_ms, max(0, expires - issued) / _LEEWAY_SHARE)
        if now_ms >= ends:
            raise RelayError(40142, "Token expired")
        try:
            _HS256.decode(credential, key.secret, algorithms=["HS256"])
        except jwt.PyJWTError:
            raise RelayError(40144, f"{_INVALID} (signature verification failed)") from None
        # From here on the claims are the key holder's own.
        if issued > now_ms + PROTOCOL.max_clock_difference_ms:
            raise RelayError(40144, f"{_INVALID}: issued in the future")
        if "nbf" in claims and _seconds(claims, "nbf") * 1000 > now_ms + PROTOCOL.expiry_leeway_ms:
            raise RelayError(40144, f"{_INVALID}: not valid yet")
        longest = PROTOCOL.max_revocable_token_ttl_ms if key.revocable_tokens else PROTOCOL.max_token_ttl_ms
        if not 0 < expires - issued <= longest:
            raise RelayError(40003, f"Invalid token; exp must be at most {longest // 1000} s after iat")
        check_status(app, key, now_ms)
        client_id, revocation_key = claims.get("x-ably-clientId"), claims.get("x-ably-revocation-key")
        if client_id is not None and (not isinstance(client_id, str) or not client_id):
            raise RelayError(40012, "Invalid clientId: must be a non-empty string")
        if revocation_key is not None and not isinstance(revocation_key, str):
            raise RelayError(40144, f"{_INVALID}: x-ably-revocation-key must be a string")
        capability = key.capability
        if (asked := claims.get("x-ably-capability")) not in (None, ""):
            capability = Capability.parse(asked).intersect(key.capability)
            if not capability:
                raise RelayError(40160, "The capability of the token has nothing in common with the key's")
        return Verified(
            app=app,
            key=key,
            basic=False,
            client_id=client_id,
            capability=capability,
            issued=int(issued),
            expires=int(ends),
            revocation_key=revocation_key,
        )

    # --- memory

    def _check_transport(self, verified: Verified, *, basic: bool, tls: bool) -> None:
        if tls:
            return
        if basic and not self._insecure_basic:
            raise RelayError(40103, "API keys need TLS")
        if verified.app.tls_only:
            raise RelayError(40311, "The app requires TLS")

    def _digest(self, *parts: str | bytes) -> bytes:
        """A keyed hash: neither the credential nor anything that it could be guessed from stays in memory."""
        state = hashlib.blake2b(digest_size=16, key=self._secret)
        for part in parts:
            state.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
            state.update(b"\0")
        return state.digest()

    def _remember(self, digest: bytes, error: RelayError, now_ms: int) -> None:
        self._refused[digest] = (now_ms + int(self._limits.failed_credential_s * 1000), error.info)
        self._refused.move_to_end(digest)
        if len(self._refused) > self._limits.failed_credentials:
            self._refused.popitem(last=False)

    def _use_nonce(self, key_name: str, nonce: str, now_ms: int) -> None:
        """Raises: RelayError 40105 if it was used before; 50004 if the memory is full, since forgetting would let replays through."""
        nonces = self._nonces
        while nonces and next(iter(nonces.values())) <= now_ms:
            nonces.popitem(last=False)
        digest = self._digest("nonce", key_name, nonce)
        if digest in nonces:
            raise RelayError(40105, "Nonce value replayed")
        if len(nonces) >= self._limits.nonces:
            raise RelayError(50004, "Too many token requests; try again")
        # A timestamp from the far end of the permitted future stays current for twice the permitted difference.
        nonces[digest] = now_ms + 2 * PROTOCOL.max_clock_difference_ms


_NATIVE = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]+")
"""An Ably token: an app id, a dot, and something of the URL-safe alphabet."""


def check_status(app: App, key: Key, now_ms: int) -> None:
    if app.status != "enabled":
        raise RelayError(40120, "The app is disabled")
    if key.status:
        raise RelayError(40131, "The key is revoked")
    if key.expires is not None and now_ms >= key.expires:
        raise RelayError(40132, "The key has expired")


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Header and claims of a JWT, unverified; None for the claims of an encrypted one. Raises: RelayError 40144."""
    parts = token.split(".")
    header = _segment(parts[0])
    return header, _segment(parts[1]) if len(parts) == 3 else None


def _segment(text: str) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(base64.urlsafe_b64decode(text.rstrip("=").encode("ascii") + b"=" * (-len(text.rstrip("=")) % 4)))
    except (binascii.Error, msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        raise RelayError(40144, _INVALID) from None
    if not isinstance(decoded, dict):
        raise RelayError(40144, _INVALID)
    return decoded


def _seconds(claims: dict[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519, 2). Raises: RelayError 40144."""
    value = claims.get(name)
    if value is None:
        raise RelayError(40144, f"Invalid token; {name} must be specified", 400)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _YEAR_10000_S:
        raise RelayError(40144, f"{_INVALID}: {name} must be a time in seconds")
    return value
