"""Who comes in, as whom, with what code when not. Ably protocol docs, 1.7 and 7."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt
import msgspec
import pytest

from core.effects import AskConfigEnd
from core.events import ConfigRead, EndOffset
from core.registry import key_record
from relay.link.calls import REQUEST_TOKEN, RequestToken, encode
from relay.link.frames import Admit, Admitted, Depart, Fetch, Page, Present, Refused, Renew
from relay.model.grants import open_grant
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from tests.unit.core.dialogue import EDGE, RING, SECRET, START_MS, Dialogue, key, token


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue()
    core.edge_up()
    return core


def code(answer: Any) -> tuple[int, int]:
    assert isinstance(answer, Refused), answer
    return answer.error.code, answer.error.status_code


# --- API keys


def test_a_key_is_admitted_with_its_capability_and_as_any_client(core):
    answer = core.admitted(f"shop.chat:{SECRET}")
    assert (answer.app, answer.client_id) == ("shop", "*")
    assert json.loads(answer.capability) == {"chat:*": ["publish", "subscribe"]}
    assert len(answer.session) == 10
    assert ":" not in answer.session
    assert answer.key.startswith(answer.session + "!0.")
    assert answer.token_expires is None
    assert answer.grant_expires == START_MS + 300_000
    grant = open_grant(core.keyring, answer.grant, edge=EDGE, boot="boot-1", now_ms=START_MS)
    assert (grant.session, grant.key_name, grant.realtime) == (answer.session, "shop.chat", True)


@pytest.mark.parametrize(
    ("credential", "realtime", "rest"),
    [
        ("nonsense", (40101, 401), (40005, 400)),
        (f"nobody.all:{SECRET}", (40101, 401), (40400, 404)),
        (f"shop.nokey:{SECRET}", (40101, 401), (40400, 401)),
        ("shop.all:wrong", (40101, 401), (40101, 401)),
        (f"shop.gone:{SECRET}", (40131, 401), (40131, 401)),
        (None, (40101, 401), (40101, 401)),
        ("", (40101, 401), (40101, 401)),
    ],
)
def test_keys_that_do_not_hold(core, credential, realtime, rest):
    assert code(core.admit(credential, basic=True)) == realtime
    assert code(core.admit(credential, basic=True, realtime=False)) == rest


def test_a_key_without_tls_is_refused_outside_dev(core):
    assert code(core.admit(tls=False)) == (40103, 401)
    assert isinstance(core.admit(token(), tls=False), Admitted)


# --- JWT


def test_a_jwt_is_admitted_with_what_token_and_key_both_permit(core):
    answer = core.admitted(token("shop.chat", **{"x-ably-capability": '{"chat:a":["*"],"other":["publish"]}', "x-ably-clientId": "bob"}))
    assert answer.client_id == "bob"
    assert json.loads(answer.capability) == {"chat:a": ["publish", "subscribe"]}
    assert answer.issued == START_MS
    assert answer.token_expires == START_MS + 3_605_000  # five seconds of leeway


def test_rsa_none_and_other_algorithms_are_refused_before_any_signature_is_checked(core):
    for alg in ("none", "HS512"):
        bad = jwt.encode(
            {"iat": START_MS // 1000, "exp": START_MS // 1000 + 60}, SECRET if alg != "none" else None, alg, {"kid": "shop.all"}
        )
        assert code(core.admit(bad)) == (40144, 401)
    assert code(core.admit(token(header={"crit": ["exp"]}))) == (40144, 401)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iat": None}, (40144, 400)),
        ({"exp": None}, (40144, 400)),
        ({"exp": START_MS // 1000 - 10, "iat": START_MS // 1000 - 100}, (40142, 401)),
        ({"exp": START_MS // 1000 + 90_000}, (40003, 400)),
        ({"iat": START_MS // 1000 + 600, "exp": START_MS // 1000 + 900}, (40144, 401)),
        ({"nbf": START_MS // 1000 + 60}, (40144, 401)),
        ({"exp": 1e400}, (40144, 401)),
        ({"exp": True}, (40144, 401)),
        ({"exp": "soon"}, (40144, 401)),
        ({"x-ably-clientId": 7}, (40012, 400)),
        ({"x-ably-clientId": ""}, (40012, 400)),
        ({"x-ably-revocation-key": 7}, (40144, 401)),
        ({"x-ably-capability": "{"}, (40000, 400)),
        ({"x-ably-capability": '{"elsewhere":["publish"]}'}, (40160, 401)),
    ],
)
def test_claims_that_do_not_hold(core, changes, expected):
    assert code(core.admit(token("shop.chat", **changes))) == expected


def test_a_revocable_key_signs_for_an_hour_at_most(core):
    assert code(core.admit(token("shop.revocable", ttl_s=3700))) == (40003, 400)
    assert isinstance(core.admit(token("shop.revocable", ttl_s=3600)), Admitted)


def test_a_forged_signature_says_both_words_that_clients_look_for(core):
    answer = core.admit(token(secret="f" * 32))
    assert code(answer) == (40144, 401)
    assert "invalid JWT format" in answer.error.message
    assert "signature verification failed" in answer.error.message


def test_expiry_is_looked_at_before_the_signature(core):
    assert code(core.admit(token(secret="f" * 32, now_ms=START_MS - 7_200_000))) == (40142, 401)


def test_the_leeway_is_five_seconds_and_a_tenth_of_a_short_life(core):
    assert isinstance(core.admit(token(now_ms=START_MS - 3_604_000)), Admitted)
    assert code(core.admit(token(now_ms=START_MS - 3_605_000))) == (40142, 401)
    assert code(core.admit(token(now_ms=START_MS - 6_000, ttl_s=5))) == (40142, 401)


@pytest.mark.parametrize(
    ("kid", "realtime", "rest"), [("nobody.all", (40101, 401), (40400, 404)), ("shop.nokey", (40101, 401), (40400, 401))]
)
def test_unknown_apps_and_keys_of_a_jwt(core, kid, realtime, rest):
    assert code(core.admit(token(kid))) == realtime
    answer = core.admit(token(kid), realtime=False)
    assert code(answer) == rest
    if kid == "nobody.all":
        assert "No application found with id nobody" in answer.error.message


@pytest.mark.parametrize("kid", [None, 7, "shop", "shop.all.x", ""])
def test_a_kid_that_names_no_key(core, kid):
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": kid}).encode()).decode().rstrip("=")
    assert code(core.admit(header + "." + token().split(".", 1)[1])) == (40144, 401)


@pytest.mark.parametrize("text", ["a.b.c", "..", "e30.e30.e30", "W10.W10.W10", "\u00e9.e30.x", "eyJhbGciOjF9.e30.", "x" * 200_000])
def test_what_is_no_jwt(core, text):
    answer = core.admit(text)
    assert isinstance(answer, Refused)
    assert answer.error.code in (40144, 40101)


def test_text_that_is_no_token_at_all_is_fatal_not_renewable(core):
    assert code(core.admit("this-is-not-a-token")) == (40101, 401)


# --- embedding


def outer(inner: str, *, in_header: bool, exp: int, secret: str = "whatever, it is not checked") -> str:
    claims: dict[str, Any] = {"exp": exp} if in_header else {"exp": exp, "x-ably-token": inner}
    return jwt.encode(claims, secret, "HS256", headers={"x-ably-token": inner} if in_header else {})


@pytest.mark.parametrize("in_header", [True, False])
def test_an_embedded_token_is_the_credential(core, in_header):
    inner = token(**{"x-ably-clientId": "bob"})
    assert core.admitted(outer(inner, in_header=in_header, exp=START_MS // 1000 + 60)).client_id == "bob"
    assert code(core.admit(outer(inner, in_header=in_header, exp=START_MS // 1000 + 7200))) == (40144, 401)
    assert code(core.admit(outer(token(secret="f" * 32), in_header=in_header, exp=START_MS // 1000 + 60))) == (40144, 401)


def test_an_encrypted_envelope_has_only_its_header_read(core):
    head = base64.urlsafe_b64encode(json.dumps({"alg": "dir", "enc": "A128GCM", "x-ably-token": token()}).encode()).decode().rstrip("=")
    assert isinstance(core.admit(head + "..aaaa.bbbb.cccc"), Admitted)
    bare = base64.urlsafe_b64encode(b'{"alg":"dir"}').decode().rstrip("=")
    assert code(core.admit(bare + "..aaaa.bbbb.cccc")) == (40144, 401)


def test_envelopes_are_not_nested(core):
    once = outer(token(), in_header=True, exp=START_MS // 1000 + 60)
    assert code(core.admit(outer(once, in_header=True, exp=START_MS // 1000 + 60))) == (40144, 401)


# --- identity (7.7)


@pytest.mark.parametrize(
    ("has", "claims", "result"),
    [
        (None, None, None),
        ("bob", None, "bob"),
        ("bob", "bob", "bob"),
        ("*", None, "*"),
        ("*", "eve", "eve"),
        ("bob", "eve", 40102),
        (None, "eve", 40102),
    ],
)
def test_the_identity_of_a_token(core, has, claims, result):
    answer = core.admit(token(**({} if has is None else {"x-ably-clientId": has})), client_id=claims)
    assert (answer.error.code if isinstance(answer, Refused) else answer.client_id) == result


# --- resume, renew, reauthenticate, depart


def test_rtn15c7_a_text_that_is_no_key_gives_a_new_connection_and_says_why(core):
    for fake in ("_____!ablyjs_test_fake-key____", "ably-python-fake-key", "0123456789abcdef-99", ""):
        answer = core.admitted(recover=fake)
        assert (answer.error.code, answer.error.status_code) == (80018, 400)
    assert core.admitted().error is None


def test_renewal_gives_a_later_grant_for_the_same_session_never_beyond_the_token(core):
    session = core.admitted(token(ttl_s=400)).session
    core.tick(200)
    core.edge_sends(Renew(99, session))
    answer = core.answer(99)
    assert isinstance(answer, Admitted)
    assert (answer.session, answer.key) == (session, "")
    assert answer.grant_expires == answer.token_expires == START_MS + 405_000


def test_renewal_ends_with_the_token_the_key_or_the_session(core):
    session = core.admitted(token(ttl_s=60)).session
    core.edge_sends(Depart(session, True))
    core.edge_sends(Renew(98, session))
    assert code(core.answer(98)) == (40101, 401)
    session = core.admitted(token(ttl_s=60)).session
    core.now_ms += 66_000
    core.edge_sends(Renew(99, session))
    assert code(core.answer(99)) == (40142, 401)


def test_reauthentication_keeps_the_connection_and_changes_its_rights(core):
    first = core.admitted(token(**{"x-ably-clientId": "bob"}))
    answer = core.admitted(token("shop.chat", **{"x-ably-clientId": "bob"}), session=first.session)
    assert (answer.session, answer.key, answer.error) == (first.session, "", None)
    assert "chat:*" in answer.capability
    core.append(first.session, "elsewhere")
    assert core.counted("append.capability") == 1


@pytest.mark.parametrize("credential", [token("bank.all", **{"x-ably-clientId": "bob"}), token(**{"x-ably-clientId": "eve"}), token()])
def test_reauthentication_as_somebody_else_is_refused(core, credential):
    session = core.admitted(token(**{"x-ably-clientId": "bob"})).session
    assert code(core.admit(credential, session=session)) == (40102, 401)


def test_reauthentication_of_a_session_that_is_not_here(core):
    assert code(core.admit(token(), session="aaaaaaaaaa")) == (40101, 401)


# --- floods


def test_a_refused_credential_is_remembered_by_hash_and_not_for_long():
    core = Dialogue(limits=CoreLimits(failed_credentials=2))
    core.edge_up()
    bad = token(secret="f" * 32)
    assert code(core.admit(bad)) == (40144, 401)
    memory = core.node._admission._refused
    assert len(memory) == 1
    assert all(bad not in repr(part) for part in (*memory.keys(), *memory.values()))
    assert code(core.admit(bad)) == (40144, 401)
    for n in range(5):
        core.admit(token(secret=f"{n}" * 32))
    assert len(memory) == 2


def test_what_was_refused_may_be_good_once_apps_change():
    core = Dialogue(sandbox=True)
    core.edge_up()
    core.tick(1)
    core.edge_sends(Admit(100, f"new.k:{SECRET}", True, True, True, 6))
    core.turns()
    (ask,) = core.take(AskConfigEnd)
    core.happens(EndOffset(ask.ask, -1, 0))
    core.turns()
    assert code(core.answer(100)) == (40101, 401)
    for record in (("app:new", json.dumps({"v": 1}).encode()), key_record(core.keyring, key("new", "k"), created=0)):
        core.happens(ConfigRead(*record))
    assert isinstance(core.admit(f"new.k:{SECRET}"), Admitted)


def test_admits_are_served_a_few_a_turn_the_links_in_rotation_and_appends_never_wait():
    core = Dialogue(limits=CoreLimits(admits_per_turn=4, link_admits=100))
    core.edge_up(1)
    core.edge_up(2, boot="boot-2")
    session = core.admitted().session
    for n in range(50):
        core.edge_sends(Admit(1000 + n, f"shop.all:{SECRET}", True, True, True, 6), 1)
    core.edge_sends(Admit(2000, f"shop.all:{SECRET}", True, True, True, 6), 2)
    assert core.sent(1) == core.sent(2) == []
    core.append(session, "a")
    assert len(core.kafka_writes()) == 1
    core.sent(1)
    core.tick()
    assert [type(frame) for frame in core.sent(2)] == [Admitted]
    assert len(core.sent(1)) == 3


def test_beyond_its_queue_a_link_is_told_to_try_again():
    core = Dialogue(limits=CoreLimits(link_admits=3))
    core.edge_up()
    for n in range(10):
        core.edge_sends(Admit(n, token(), False, True, True, 6))
    assert [frame.error.code for frame in core.sent()] == [50004] * 7
    assert core.counted("admit.busy") == 7


# --- an app that another core has just made


def test_an_unknown_key_is_looked_for_once_before_it_is_refused():
    core = Dialogue(sandbox=True)
    core.edge_up()
    for n in range(3):
        core.edge_sends(Admit(100 + n, f"new.k:{SECRET}", True, True, True, 6))
    core.tick(0.2)
    (ask,) = core.take(AskConfigEnd)
    assert core.sent() == []
    core.happens(ConfigRead("app:new", json.dumps({"v": 1}).encode()))
    core.happens(ConfigRead(*key_record(core.keyring, key("new", "k"), created=0)))
    core.happens(EndOffset(ask.ask, -1, 5))
    core.turns()
    # The first one asked; the others came to the queue while that question ran, and ask again or find the key known.
    for later in core.take(AskConfigEnd):
        core.happens(EndOffset(later.ask, -1, 5))
    core.tick(0.2)
    for later in core.take(AskConfigEnd):
        core.happens(EndOffset(later.ask, -1, 5))
    core.turns()
    assert [type(frame) for frame in core.sent()] == [Admitted] * 3


def test_without_an_answer_from_kafka_nobody_is_called_unknown():
    core = Dialogue(sandbox=True)
    core.edge_up()
    core.edge_sends(Admit(100, f"new.k:{SECRET}", True, True, True, 6))
    core.tick(0.2)
    (ask,) = core.take(AskConfigEnd)
    core.happens(EndOffset(ask.ask, -1, None))
    assert code(core.answer(100)) == (50004, 503)


# --- native tokens (7.2, 7.3)


def signed(core: Dialogue, **fields: Any) -> dict[str, Any]:
    body = {"keyName": "shop.chat", "timestamp": core.now_ms, "nonce": "0123456789abcdef", **fields}
    text = "".join(f"{body.get(name, '')}\n" for name in ("keyName", "ttl", "capability", "clientId", "timestamp", "nonce"))
    return {"mac": base64.b64encode(hmac.digest(SECRET.encode(), text.encode(), "sha256")).decode(), **body}


def request(core: Dialogue, body: Any, key_name: str = "shop.chat", basic: str | None = None) -> Any:
    req = core.req()
    call = RequestToken(key_name, msgspec.Raw(json.dumps(body).encode()), basic)
    core.edge_sends(Fetch(req, "", REQUEST_TOKEN, encode(call)))
    core.turns()
    answer = core.answer(req)
    return json.loads(answer.body) if isinstance(answer, Page) else answer


def test_a_signed_request_gets_a_token_that_is_admitted(core):
    details = request(core, signed(core, ttl=60_000, clientId="bob", capability='{"chat:x":["*"]}'))
    assert details["expires"] == details["issued"] + 60_000
    assert details["capability"] == '{"chat:x":["publish","subscribe"]}'
    assert ":" not in details["token"]
    answer = core.admitted(details["token"])
    assert (answer.client_id, answer.capability) == ("bob", details["capability"])
    core.now_ms += 60_000
    assert code(core.admit(details["token"])) == (40142, 401)


def test_a_token_of_one_core_is_admitted_by_every_core_of_the_ring(core):
    other = Dialogue()
    other.edge_up()
    assert isinstance(other.admit(request(core, signed(core))["token"]), Admitted)


def test_a_token_of_another_cluster_is_not_recognised(core):
    details = request(core, signed(core))
    stranger = Dialogue()
    stranger.node._admission._keyring = Keyring([("k1", b"\2" * 32)])
    stranger.edge_up()
    assert code(stranger.admit(details["token"])) == (40143, 401)
    assert RING[0][1] != b"\2" * 32


def test_basic_auth_with_the_very_key_needs_no_signature(core):
    assert request(core, {}, basic=f"shop.chat:{SECRET}")["keyName"] == "shop.chat"
    assert code(request(core, {}, basic=f"shop.all:{SECRET}")) == (40101, 401)
    assert code(request(core, {}, basic="shop.chat:wrong")) == (40101, 401)
    assert code(request(core, {})) == (40101, 401)


def test_a_nonce_counts_once_while_its_timestamp_is_current(core):
    body = signed(core)
    assert "token" in request(core, body)
    assert code(request(core, body)) == (40105, 401)
    core.now_ms += 121_000
    assert code(request(core, body)) == (40104, 401)
    core.now_ms += 240_000
    assert "token" in request(core, signed(core))


def test_a_full_memory_of_nonces_refuses_rather_than_forgets():
    core = Dialogue(limits=CoreLimits(nonces=1))
    core.edge_up()
    assert "token" in request(core, signed(core))
    assert code(request(core, signed(core, nonce="another-nonce-of-16"))) == (50004, 503)


def test_unknown_keys_of_token_requests(core):
    assert code(request(core, {}, key_name="nobody.x")) == (40400, 404)
    assert code(request(core, {}, key_name="shop.nokey")) == (40400, 401)
    assert code(request(core, {}, key_name="nonsense")) == (40400, 404)


def test_grants_of_one_core_count_at_another(core):
    answer = core.admitted()
    other = Dialogue()
    other.edge_up()
    other.edge_sends(Present(answer.grant))
    other.append(answer.session, "a", f"c:{answer.session}:0")
    assert len(other.kafka_writes()) == 1


def test_a_disabled_app(core):
    core.happens(ConfigRead("app:shop", json.dumps({"v": 1, "status": "disabled"}).encode()))
    assert code(core.admit()) == (40120, 403)
    core.happens(ConfigRead("app:shop", None))
    assert isinstance(core.admit(), Admitted)
