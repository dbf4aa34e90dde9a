"""What a core makes of the records of revocations."""

from __future__ import annotations

import itertools
import json
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.effects import WriteConfig
from core.events import ConfigRead, ConfigWritten
from core.registry import App
from core.revocations import MAX_AGE_MS, MAX_TARGET, Revocations, asked
from relay.link.calls import REVOKE_TOKENS, RevokeTokens, encode
from relay.link.frames import Admitted, Fetch, Present, Refused, Renew, Revoke
from relay.model.capability import Capability
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from tests.unit.core.dialogue import EDGE, SECRET, START_MS, Dialogue, token
from tests.unit.core.dialogue import key as a_key

KEY = "shop.revocable"


def record(*targets: str, before: int = START_MS, applies: int = START_MS, key: str = KEY, number: int = 0) -> tuple[str, bytes]:
    value = {"v": 1, "targets": list(targets), "issuedBefore": before, "appliesAt": applies, "created": START_MS}
    return f"revocation:{key}:{number}", json.dumps(value).encode()


def counts(found: Revocations, now: int, issued: int, **more: object) -> bool:
    capability = Capability.parse(more.pop("capability", '{"*":["*"]}'))  # type: ignore[arg-type]
    what = {"client_ids": ("bob",), "revocation_key": None, "key_name": KEY} | more
    try:
        found.check(issued=issued, capability=capability, now_ms=now, **what)  # type: ignore[arg-type]
    except RelayError as error:
        if error.code != 40141:
            raise
        return False
    return True


times = st.integers(0, 8)


@given(st.lists(st.tuples(times, times, st.sets(st.sampled_from(["clientId:bob", "revocationKey:g", "channel:c"]), min_size=1))), st.data())
def test_records_mean_the_same_in_any_order_and_written_twice(said, data):
    made = [record(*sorted(targets), before=before, applies=applies, number=n) for n, (before, applies, targets) in enumerate(said)]
    order = data.draw(st.permutations(made + made))
    gone = {key for key, _ in made if data.draw(st.booleans())}
    found = Revocations()
    for key, value in order:
        found.read(key, value)
    for key in gone:
        found.read(key, None)
    left = [one for (key, _), one in zip(made, said, strict=True) if key not in gone]
    assert len(found) == len(left)
    assert found.targets == sum(len(targets) for _, _, targets in left)
    for now, issued, group in itertools.product(range(9), range(9), (None, "g")):
        names = {"clientId:bob"} | ({"revocationKey:g"} if group else set())
        revoked = any(names & targets and issued < before and now >= applies for before, applies, targets in left)
        assert counts(found, now, issued, revocation_key=group) is not revoked


def test_what_a_target_names():
    found = Revocations()
    found.read(*record("clientId:bob", "revocationKey:grp", "channel:chat:*", before=5, applies=0))
    nobody = {"client_ids": (None,)}
    assert not counts(found, 5, 4)
    assert not counts(found, 5, 4, client_ids=("*", "bob"))
    assert counts(found, 5, 5)
    assert counts(found, 5, 4, **nobody)
    assert counts(found, 5, 4, client_ids=("bobby",))
    assert not counts(found, 5, 4, **nobody, revocation_key="grp")
    assert counts(found, 5, 4, **nobody, revocation_key="bob")
    assert not counts(found, 5, 4, **nobody, capability='{"chat:*":["subscribe"],"x":["*"]}')
    assert counts(found, 5, 4, **nobody, capability='{"chat:room":["subscribe"]}')
    assert counts(found, 5, 4, key_name="shop.other")


@pytest.mark.parametrize("value", [b"", b"[]", b"null", b'{"targets":1}', b'{"targets":["clientId:x"]}', b"\xff"])
def test_a_record_that_cannot_be_read_is_left_out(value):
    found = Revocations()
    assert found.read(f"revocation:{KEY}:1", value) is None
    assert (len(found), found.unreadable) == (0, 1)


anything = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(anything, lambda some: st.lists(some, max_size=4)))
def test_whatever_is_asked_is_answered_or_refused(targets):
    try:
        found = asked(KEY, json.dumps({"targets": targets}).encode(), os.urandom, START_MS)
    except RelayError as error:
        if error.code not in (40000, 40003):
            raise
        return
    assert len(found.results) == len(targets)
    json.dumps(found.results)


@pytest.mark.parametrize("before", [True, "1", 1.5, START_MS + 1, START_MS - MAX_AGE_MS - 1, -1, 10**30])
def test_a_time_that_cannot_be(before):
    with pytest.raises(RelayError) as refused:
        asked(KEY, json.dumps({"targets": ["clientId:x"], "issuedBefore": before}).encode(), os.urandom, START_MS)
    assert refused.value.code == 40003


def a_client(core: Dialogue, **claims: object) -> Admitted:
    admitted = core.admit(token(KEY, now_ms=core.now_ms - 2000, secret=SECRET, **claims))
    assert isinstance(admitted, Admitted)
    return admitted


def test_a_grant_of_a_revoked_token_passes_on_no_core_and_is_not_renewed():
    core, other = Dialogue(), Dialogue(name="core-2")
    for each in (core, other):
        each.edge_up()
    bob = a_client(core, **{"x-ably-clientId": "bob"})
    other.happens(ConfigRead(*record("clientId:bob")))
    other.edge_sends(Present(bob.grant))
    assert [(frame.session, frame.error.code) for frame in other.sent() if isinstance(frame, Revoke)] == [(bob.session, 40141)]
    core.happens(ConfigRead(*record("clientId:bob", applies=START_MS + 500)))
    core.now_ms += 600
    core.edge_sends(Renew(req := core.req(), bob.session))
    refused = core.answer(req)
    assert isinstance(refused, Refused)
    assert refused.error.code == 40141


def test_who_takes_on_the_name_under_a_token_for_any_name():
    core = Dialogue()
    core.edge_up()
    core.happens(ConfigRead(*record("clientId:bob")))
    anybody = token(KEY, now_ms=core.now_ms - 2000, secret=SECRET, **{"x-ably-clientId": "*"})
    assert isinstance(core.admit(anybody, client_id="ann"), Admitted)
    assert core.admit(anybody, client_id="bob").error.code == 40141


def test_an_api_key_is_no_token():
    core = Dialogue()
    core.edge_up()
    core.happens(ConfigRead(*record("clientId:bob", "channel:*")))
    assert isinstance(core.admit(f"{KEY}:{SECRET}", client_id="bob"), Admitted)


def test_nothing_is_forgotten_where_there_is_no_room():
    core = Dialogue(limits=CoreLimits(revoked_targets=2), sandbox=True)
    core.edge_up()
    core.happens(ConfigRead(*record("clientId:a", "clientId:b")))
    body = msgspec.Raw(b'{"targets":["clientId:c"]}')
    core.edge_sends(Fetch(req := core.req(), "", REVOKE_TOKENS, encode(RevokeTokens(KEY, body, f"{KEY}:{SECRET}"))))
    core.turns()
    assert core.answer(req).error.code == 42910


def test_the_audit_says_which_key_revoked_and_before_it_comes_to_pass():
    core = Dialogue()
    core.edge_up()
    body = msgspec.Raw(b'{"targets":["clientId:bob","nonsense"]}')
    core.edge_sends(Fetch(req := core.req(), "", REVOKE_TOKENS, encode(RevokeTokens(KEY, body, f"{KEY}:{SECRET}"))))
    core.turns()
    first = core.take(WriteConfig)
    number = first[1].key.rpartition(":")[2]
    assert [one.key for one in first] == [f"audit:k:{number}", f"revocation:{KEY}:{number}"]
    for one in first:
        assert core.take(WriteConfig) == [], "not before it has come to pass"
        core.happens(ConfigWritten(one.ticket, True))
    (then,) = core.take(WriteConfig)
    assert core.answer(req).status == 201
    pending, entry = json.loads(first[0].value), json.loads(then.value)
    assert (then.key, pending.pop("outcome"), entry["outcome"]) == (first[0].key, "pending", "applied")
    assert pending == {name: value for name, value in entry.items() if name != "outcome"}
    assert (entry["by"], entry["core"], entry["action"]) == ({"type": "key", "id": KEY, "name": "revocable"}, "core-1", "revocation.create")
    assert entry["target"] == {"app": "shop", "key": "revocable", "revocation": number}
    assert (entry["after"]["targets"], entry["source"]) == (["clientId:bob"], EDGE)
    assert SECRET not in str((first, then))


def test_a_revocation_that_is_not_written_stays_pending_in_the_audit():
    core = Dialogue()
    core.edge_up()
    body = msgspec.Raw(b'{"targets":["clientId:bob"]}')
    core.edge_sends(Fetch(req := core.req(), "", REVOKE_TOKENS, encode(RevokeTokens(KEY, body, f"{KEY}:{SECRET}"))))
    core.turns()
    noted, revoked = core.take(WriteConfig)
    core.happens(ConfigWritten(noted.ticket, True))
    core.happens(ConfigWritten(revoked.ticket, False))
    assert core.answer(req).error.code == 50003
    assert core.take(WriteConfig) == []


def test_a_target_is_no_longer_than_the_longest_channel_name_needs():
    for length, good in ((MAX_TARGET, True), (MAX_TARGET + 1, False)):
        target = "channel:".ljust(length, "x")
        found = asked(KEY, json.dumps({"targets": [target]}).encode(), os.urandom, START_MS)
        assert (found.record is not None) is good


def asks_to_revoke(core: Dialogue, *targets: str, key: str = KEY) -> int:
    body = msgspec.Raw(json.dumps({"targets": targets}).encode())
    core.edge_sends(Fetch(req := core.req(), "", REVOKE_TOKENS, encode(RevokeTokens(key, body, f"{key}:{SECRET}"))))
    core.turns()
    return req


def test_one_app_leaves_room_for_the_revocations_of_others():
    static = [App(id=app, keys={"k": a_key(app, "k", revocable_tokens=True)}) for app in ("one", "two")]
    core = Dialogue(limits=CoreLimits(revoked_targets=10, revoked_app_targets=3), static=static)
    core.edge_up()
    core.happens(ConfigRead(*record("clientId:a", "clientId:b", key="one.k")))
    assert core.answer(asks_to_revoke(core, "clientId:c", "clientId:d", key="one.k")).error.code == 42910
    asks_to_revoke(core, "clientId:c", "clientId:d", key="two.k")
    assert len(core.take(WriteConfig)) == 2
    core.happens(ConfigRead(record(key="one.k")[0], None))
    asks_to_revoke(core, "clientId:c", "clientId:d", key="one.k")
    assert len(core.take(WriteConfig)) == 2, "what has run out makes room"


def test_holders_of_keys_leave_half_of_the_writes_to_operators():
    core = Dialogue(limits=CoreLimits(config_writes=4))
    core.edge_up()
    asks_to_revoke(core, "clientId:a")
    assert core.answer(asks_to_revoke(core, "clientId:b")).error.code == 50004
    for one in core.take(WriteConfig):
        core.happens(ConfigWritten(one.ticket, True))
    core.take(WriteConfig)
    asks_to_revoke(core, "clientId:c")
    assert len(core.take(WriteConfig)) == 2
