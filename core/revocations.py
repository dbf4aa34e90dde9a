"""Tokens that count no more before their time: `POST /keys/{keyName}/revokeTokens`, and the Control API. Source: Ably protocol docs, 7.10.

A request makes one record of `tidegate.config`, under `revocation:<app>.<key>:<id>`, for all its targets: it counts whole or not at all.
Records are never changed. Whether a token is revoked follows from all of them together, so that it does not matter which was written
first, and that of two cores neither writes what undoes the other's. A record goes when no token can be left that it speaks of.

The status of a revocation follows from its times: `pending` until it applies, then `active`, and `expired` once no token can be left.

A token is one that a key has issued before some time, and that is called as a target says:

    clientId:bob         its clientId; also that which its bearer took on, where the token permits any
    revocationKey:grp    its claim `x-ably-revocation-key`
    channel:news         a resource of its capability, as it is written there
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.grants import Grant
from relay.model.limits import PROTOCOL, CoreLimits

PREFIX = "revocation:"
RECORD_VERSION = 1
CREATED = "revocation.create"
"""What the audit calls it."""
KINDS = ("clientId", "revocationKey", "channel")
MAX_TARGETS = 100
"""Of one request. Above it: 40003."""
MAX_TARGET = 2_080
"""Characters of one: room for every channel name. Above it: 40000."""
MAX_AGE_MS = 3_600_000
"""How far back `issuedBefore` may lie. Beyond it: 40003. Tokens of a key that can revoke them live no longer."""
MARGIN_MS = 31_000
"""With `allowReauthMargin`: how long clients have to bring another token, in milliseconds. They are promised 30 s, on any clock."""
KEPT_MS = PROTOCOL.max_token_ttl_ms + 3_600_000
"""How long after its `issuedBefore` a record is kept: no token lives longer, whatever its key permitted when it was issued."""


class RevocationRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`targets` as they were asked for. Times are milliseconds of wall clock."""

    v: int = RECORD_VERSION
    targets: list[str]
    issued_before: int
    applies_at: int
    created: int


class _Word:
    """What one record says of its targets."""

    __slots__ = ("applies_at", "issued_before")

    def __init__(self, record: RevocationRecord) -> None:
        self.issued_before = record.issued_before
        self.applies_at = record.applies_at


class Revocations:
    """All of them, of all apps. `check` costs a look-up for each name that a token has, and nothing where its key never revoked any."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[RevocationRecord, _Word]] = {}
        """By record key."""
        self._words: dict[str, dict[str, list[_Word]]] = {}
        """By key name (`app.key`) and target."""
        self._due: list[tuple[int, str]] = []
        """When records begin to apply that do not yet: with their keys."""
        self._over: list[tuple[int, str]] = []
        """When records have nothing left to say."""
        self.targets = 0
        self.targets_of: Counter[str] = Counter()
        """Of each app."""
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self._records)

    def read(self, key: str, value: bytes | None) -> tuple[str, RevocationRecord] | None:
        """A record of `tidegate.config`. The name of the key whose tokens it revokes, and what it says, unless it was known."""
        name = key.removeprefix(PREFIX).partition(":")[0]
        if value is None:
            self._forget(key, name)
            return None
        if key in self._records:
            return None
        try:
            record = msgspec.json.decode(value, type=RevocationRecord)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.unreadable += 1
            return None
        word, words = _Word(record), self._words.setdefault(name, {})
        self._records[key] = record, word
        for target in record.targets:
            words.setdefault(target, []).append(word)
        self.targets += len(record.targets)
        self.targets_of[name.partition(".")[0]] += len(record.targets)
        heapq.heappush(self._due, (record.applies_at, key))
        heapq.heappush(self._over, (record.issued_before + KEPT_MS, key))
        return name, record

    def _forget(self, key: str, name: str) -> None:
        known = self._records.pop(key, None)
        if known is None:
            return
        (record, gone), words = known, self._words[name]
        self.targets -= len(record.targets)
        app = name.partition(".")[0]
        self.targets_of[app] -= len(record.targets)
        if not self.targets_of[app]:
            del self.targets_of[app]
        for target in record.targets:
            words[target] = [word for word in words.get(target, ()) if word is not gone]
            if not words[target]:
                del words[target]
        if not words:
            del self._words[name]

    def check(
        self,
        *,
        key_name: str,
        issued: int | None,
        client_ids: Iterable[object],
        revocation_key: str | None,
        capability: Capability,
        now_ms: int,
    ) -> None:
        """`issued`: None for what is no token. Raises: RelayError 40141."""
        words = self._words.get(key_name)
        if words is None or issued is None:
            return
        names = [f"clientId:{client_id}" for client_id in client_ids if client_id is not None]
        names += [f"channel:{resource}" for resource in capability.resources]
        if revocation_key is not None:
            names.append(f"revocationKey:{revocation_key}")
        for name in names:
            for word in words.get(name, ()):
                if issued < word.issued_before and now_ms >= word.applies_at:
                    raise RelayError(40141, "Token revoked")

    def check_grant(self, grant: Grant, capability: Capability, now_ms: int) -> None:
        """Raises: RelayError 40141."""
        self.check(
            key_name=grant.key_name,
            issued=grant.issued,
            client_ids=(grant.client_id,),
            revocation_key=grant.revocation_key,
            capability=capability,
            now_ms=now_ms,
        )

    def due(self, now_ms: int) -> Iterator[str]:
        """Names of the keys of which tokens are revoked from now on. Each once."""
        names: dict[str, None] = {}
        while self._due and self._due[0][0] <= now_ms:
            names[heapq.heappop(self._due)[1].removeprefix(PREFIX).partition(":")[0]] = None
        return iter(names)

    def over(self, now_ms: int) -> Iterator[str]:
        """Keys of records that say nothing any more, to be taken out of the topic. Each once."""
        while self._over and self._over[0][0] <= now_ms:
            _, key = heapq.heappop(self._over)
            if key in self._records:
                yield key


class Asked(msgspec.Struct, frozen=True):
    """A request that may be granted. `record` is None if none of its targets can be one; `results` are the answer, in the order asked."""

    record: tuple[str, bytes] | None
    results: list[dict[str, Any]]
    targets: int


def asked(key_name: str, body: bytes, random: Callable[[int], bytes], now_ms: int) -> Asked:
    """What a request of the holder of that key comes to. Raises: RelayError 40000, 40001, 40003."""
    try:
        spec = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RelayError(40001, "Invalid body; not JSON") from None
    targets = spec.get("targets") if isinstance(spec, dict) else None
    if not isinstance(targets, list) or not targets:
        raise RelayError(40000, "Invalid request; targets must be a list of at least one")
    if len(targets) > MAX_TARGETS:
        raise RelayError(40003, f"Invalid request; more than {MAX_TARGETS} targets")
    before, margin = spec.get("issuedBefore"), spec.get("allowReauthMargin")
    if before is None:
        before = now_ms
    if isinstance(before, float) and before.is_integer():
        before = int(before)
    if type(before) is not int or not now_ms - MAX_AGE_MS <= before <= now_ms:
        raise RelayError(40003, "Invalid issuedBefore; must be a time in milliseconds, of the last hour")
    if margin is not None and not isinstance(margin, bool):
        raise RelayError(40003, "Invalid allowReauthMargin; must be true or false")
    applies_at = now_ms + MARGIN_MS if margin else now_ms
    results: list[dict[str, Any]] = []
    good: dict[str, None] = {}
    for target in targets:
        if _is_target(target):
            good[target] = None
            results.append({"target": target, "issuedBefore": before, "appliesAt": applies_at})
        else:
            kinds = ", ".join(f"{kind}:…" for kind in KINDS)
            why = RelayError(40000, f"Invalid target; must be a text of at most {MAX_TARGET} characters such as {kinds}").info
            results.append({"target": target, "error": msgspec.to_builtins(why)})
    if not good:
        return Asked(None, results, 0)
    record = RevocationRecord(targets=list(good), issued_before=before, applies_at=applies_at, created=now_ms)
    # In the order of time, so that lists have pages.
    number = f"{now_ms:013d}-{base64.urlsafe_b64encode(random(9)).decode()}"
    return Asked((f"{PREFIX}{key_name}:{number}", msgspec.json.encode(record)), results, len(good))


def status_of(record: RevocationRecord, now_ms: int) -> str:
    if now_ms < record.applies_at:
        return "pending"
    return "active" if now_ms < record.issued_before + KEPT_MS else "expired"


def view_of(key: str, record: RevocationRecord, now_ms: int) -> dict[str, Any]:
    """A record, by its key, as the Control API and the audit show it."""
    key_name, _, number = key.removeprefix(PREFIX).partition(":")
    app, _, key_id = key_name.partition(".")
    return {
        "id": number,
        "appId": app,
        "key": key_id,
        "targets": record.targets,
        "status": status_of(record, now_ms),
        "issuedBefore": record.issued_before,
        "appliesAt": record.applies_at,
        "expires": record.issued_before + KEPT_MS,
        "created": record.created,
    }


def _is_target(target: object) -> bool:
    if not isinstance(target, str) or len(target) > MAX_TARGET:
        return False
    kind, _, value = target.partition(":")
    return kind in KINDS and bool(value)


def answer(results: list[dict[str, Any]], *, flat: bool) -> tuple[int, Any]:
    """HTTP status and body. `flat`: as protocol version 2 has it."""
    failures = sum("error" in each for each in results)
    if not flat:
        return 201, {"successCount": len(results) - failures, "failureCount": failures, "results": results}
    if not failures:
        return 201, results
    error = RelayError(40020, "Batched response includes errors").info
    return 400, {"error": msgspec.to_builtins(error), "batchResponse": results}


def bound(revocations: Revocations, app: str, more: int, limits: CoreLimits) -> None:
    """For holders of an app's keys, who must leave room to those of others. Raises: RelayError 42910 rather than forget one."""
    if revocations.targets + more > limits.revoked_targets or revocations.targets_of[app] + more > limits.revoked_app_targets:
        raise RelayError(42910, "Too many tokens are revoked; some will have run out within the day")
