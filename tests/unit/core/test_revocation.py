"""What a change of an app or a key does to those who are connected by it."""

from __future__ import annotations

import msgspec
import pytest

from core.events import ConfigRead
from core.registry import Key, key_record
from relay.link.frames import Admitted, Open, Present, Refused, Renew, Revoke
from relay.model.capability import Capability
from relay.model.keyring import Keyring
from tests.unit.core.dialogue import RING, SECRET, Dialogue, token

KEY = Key(app="new", id="k", secret=SECRET, capability=Capability.parse('{"chat:*":["publish","subscribe"],"*":["history"]}'))


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue()
    core.edge_up()
    write(core, KEY)
    core.happens(ConfigRead("app:new", b'{"name":"new"}'))
    return core


def write(core: Dialogue, key: Key) -> None:
    core.happens(ConfigRead(*key_record(Keyring(RING), key, created=0)))


def changed(**what: object) -> Key:
    return msgspec.structs.replace(KEY, **what)


def a_client(core: Dialogue, **claims: object) -> Admitted:
    admitted = core.admit(token("new.k", secret=SECRET, **claims))
    assert isinstance(admitted, Admitted)
    return admitted


def revoked(core: Dialogue) -> dict[str, int]:
    return {frame.session: frame.error.code for frame in core.sent() if isinstance(frame, Revoke)}


def test_clients_of_a_revoked_key_are_disconnected_at_once(core):
    one, two = a_client(core), a_client(core)
    other = core.admit(f"shop.all:{SECRET}")
    write(core, changed(status=1))
    assert revoked(core) == {one.session: 40131, two.session: 40131}
    assert isinstance(core.admit(token("new.k", secret=SECRET)), Refused)
    req = core.req()
    core.edge_sends(Renew(req, one.session))
    core.edge_sends(Renew(core.req(), other.session))
    assert isinstance(core.answer(req), Refused)


def test_a_grant_of_a_revoked_key_does_not_pass_on_another_core_either(core):
    one = a_client(core)
    other = Dialogue()
    other.edge_up()
    write(other, changed(status=1))
    other.happens(ConfigRead("app:new", b'{"name":"new"}'))
    other.edge_sends(Present(one.grant))
    assert revoked(other) == {one.session: 40131}


def test_clients_of_a_disabled_or_deleted_app_are_disconnected(core):
    one = a_client(core)
    core.happens(ConfigRead("app:new", b'{"name":"new","status":"disabled"}'))
    assert revoked(core) == {one.session: 40120}
    core.happens(ConfigRead("app:new", b'{"name":"new"}'))
    two = a_client(core)
    core.happens(ConfigRead("app:new", b'{"name":"new","deleted":true}'))
    assert revoked(core) == {two.session: 40101}


def test_a_key_that_may_less_sends_those_away_who_could_more(core):
    wide, narrow = a_client(core), a_client(core, **{"x-ably-capability": '{"chat:lobby":["subscribe"]}'})
    write(core, changed(capability=Capability.parse('{"chat:*":["subscribe"]}')))
    assert revoked(core) == {wide.session: 80003}, "a code on which SDKs come back, and are admitted with what the key may now"
    assert narrow.session not in revoked(core)


def test_a_key_that_may_more_disturbs_nobody(core):
    a_client(core)
    write(core, changed(capability=Capability.parse('{"chat:*":["publish","subscribe","presence"],"*":["history"]}')))
    assert revoked(core) == {}


def test_a_rotated_key_sends_everybody_back_to_show_the_new_secret(core):
    one = a_client(core)
    write(core, changed(secret="another secret that is long enough"))
    assert revoked(core) == {one.session: 80003}
    assert isinstance(core.admit(token("new.k", secret=SECRET)), Refused)


def test_a_token_that_was_issued_by_a_key_loses_what_the_key_loses(core):
    import json

    from relay.link.calls import REQUEST_TOKEN, RequestToken, encode
    from relay.link.frames import Fetch

    req = core.req()
    body = msgspec.Raw(b'{"keyName":"new.k"}')
    core.edge_sends(Fetch(req, "", REQUEST_TOKEN, encode(RequestToken("new.k", body, f"new.k:{SECRET}", "192.0.2.1"))))
    core.turns()
    issued = json.loads(core.answer(req).body)["token"]
    write(core, changed(capability=Capability.parse('{"chat:lobby":["subscribe"]}')))
    admitted = core.admit(issued)
    assert admitted.capability == '{"chat:lobby":["subscribe"]}'


# --- namespaces that are closed ----------------------------------------------------------------------------------------------------------


def close(core: Dialogue, name: str, **flags: bool) -> None:
    core.happens(ConfigRead(f"namespace:new:{name}", msgspec.json.encode({"id": name, **flags})))


def test_a_closed_namespace_is_told_with_each_grant_and_opens_with_the_next(core):
    close(core, "chat", authenticated=True, tlsOnly=True)
    close(core, "other", tlsOnly=True)
    assert a_client(core).bars == (("chat", 40161),)
    assert a_client(core, **{"x-ably-clientId": "bob"}).bars == ()
    assert core.admit(token("new.k", secret=SECRET), tls=False).bars == (("chat", 40311), ("other", 40311))
    one = a_client(core)
    close(core, "chat", authenticated=False)
    assert revoked(core) == {}
    req = core.req()
    core.edge_sends(Renew(req, one.session))
    assert core.answer(req).bars == ()


def test_a_namespace_that_is_closed_sends_away_only_those_it_was_open_to(core):
    nobody, bob = a_client(core), a_client(core, **{"x-ably-clientId": "bob"})
    reader = a_client(core, **{"x-ably-capability": '{"news":["history"]}'})
    plain = core.admit(token("new.k", secret=SECRET, **{"x-ably-clientId": "eve"}), tls=False)
    close(core, "chat", persisted=True)
    assert revoked(core) == {}
    close(core, "chat", tlsOnly=True)
    assert revoked(core) == {plain.session: 80003}
    close(core, "chat", authenticated=True)
    assert revoked(core) == {nobody.session: 80003}
    assert not {bob.session, reader.session} & revoked(core).keys()


def test_a_grant_from_a_core_that_did_not_know_of_it_yet_is_no_way_in(core):
    one = a_client(core)
    other = Dialogue()
    other.edge_up()
    write(other, KEY)
    other.happens(ConfigRead("app:new", b'{"name":"new"}'))
    close(other, "chat", authenticated=True)
    other.edge_sends(Present(one.grant))
    req = other.req()
    other.edge_sends(Open(req, "new", "chat:1", one.session))
    answer = other.answer(req)
    assert isinstance(answer, Refused)
    assert answer.error.code == 40161
