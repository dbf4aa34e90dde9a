"""What a core signs or seals and later gets back from elsewhere: grants, connection keys, native tokens; and the ring that does it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.connection_key import ConnectionKey, make_key, new_connection_id, parse_key
from relay.model.grants import Grant, GrantRefused, open_grant, seal_grant
from relay.model.keyring import Keyring, Purpose
from relay.model.limits import PROTOCOL
from relay.model.tokens import NativeToken, open_token, seal_token

OLD, NEW = ("old", b"o" * 32), ("new", b"n" * 32)
RING = Keyring([NEW, OLD])
STRANGER = Keyring([("new", b"s" * 32)])

TEXT = st.text(max_size=40)
TIMES = st.integers(0, 2**52)

# --- the ring --------------------------------------------------------------------------------------------------------------------------


def test_the_first_key_signs_and_all_verify():
    key_id, mac = RING.sign(Purpose.GRANT, b"data")
    assert key_id == "new"
    assert RING.verify(Purpose.GRANT, "new", b"data", mac)
    before = Keyring([OLD])
    assert RING.verify(Purpose.GRANT, *_under(before, b"data"))
    assert not before.verify(Purpose.GRANT, "new", b"data", mac), "a key that has been taken out, or has not arrived yet"


def _under(ring: Keyring, data: bytes) -> tuple[str, bytes, bytes]:
    key_id, mac = ring.sign(Purpose.GRANT, data)
    return key_id, data, mac


def test_what_is_signed_for_one_purpose_holds_for_no_other():
    macs = {RING.sign(purpose, b"data")[1] for purpose in Purpose}
    assert len(macs) == len(Purpose)


def test_subkeys_stay_what_they_are():
    """A change here would void every grant, connection key and token at the upgrade."""
    assert RING.sign(Purpose.GRANT, b"data")[1].hex().startswith(PINNED_GRANT_MAC)


PINNED_GRANT_MAC = "f303c5ca32cefc1c"


@pytest.mark.parametrize(
    "keys", [[], [("a", b"x" * 31)], [("a", b"x" * 33)], [("", b"x" * 32)], [("a b", b"x" * 32)], [("a", b"x" * 32), ("a", b"y" * 32)]]
)
def test_a_wrong_ring_is_refused_without_telling_its_secrets(keys):
    with pytest.raises(ValueError, match="key") as refused:
        Keyring(keys)
    assert "xx" not in str(refused.value)


def test_a_ring_never_shows_its_secrets():
    assert repr(RING) == "Keyring(new, old)"


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_what_is_sealed_opens_with_what_it_was_sealed_with(data, associated):
    sealed = RING.seal(data, associated)
    assert RING.open(sealed, associated) == data
    assert RING.open(sealed, associated + b"x") is None
    assert STRANGER.open(sealed, associated) is None
    assert Keyring([OLD, NEW]).open(sealed, associated) == data


@given(st.binary(max_size=80))
def test_anything_else_does_not_open(data):
    assert RING.open(data) is None


@given(st.data())
def test_no_bit_of_what_is_sealed_can_be_changed(data):
    sealed = RING.seal(b"secret", b"app")
    assert RING.open(_flipped(sealed, data), b"app") is None


def _flipped(sealed: bytes, data: st.DataObject) -> bytes:
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    changed = bytearray(sealed)
    changed[at // 8] ^= 1 << (at % 8)
    return bytes(changed)


# --- grants ----------------------------------------------------------------------------------------------------------------------------

EDGE, BOOT, NOW = "spiffe://relay.example/edge/fra/e1", "b00t", 1_763_845_200_000


def grant(**changes: object) -> Grant:
    values = {
        **{"edge": EDGE, "boot": BOOT, "session": "SuJTceISnT", "realtime": True, "incarnation": 2, "app": "app1", "key_name": "app1.key1"},
        **{
            "client_id": "bob",
            "capability": '{"*":["*"]}',
            "issued": NOW - 1_000,
            "revocation_key": None,
            "token_expires": NOW + 3_600_000,
        },
        **{"expires": NOW + 300_000},
    }
    return Grant(**{**values, **changes})


GRANTS = st.builds(
    Grant, TEXT, TEXT, TEXT, st.booleans(), st.integers(0, 2**31), TEXT, TEXT, st.none() | TEXT, TEXT, st.none() | TIMES, st.none() | TEXT,
    st.none() | TIMES, TIMES,
)  # fmt: skip


@given(GRANTS)
def test_a_grant_comes_back_as_it_was_given(given_grant):
    sealed = seal_grant(RING, given_grant)
    assert open_grant(RING, sealed, edge=given_grant.edge, boot=given_grant.boot, now_ms=0) == given_grant
    assert open_grant(Keyring([OLD, NEW]), sealed, edge=given_grant.edge, boot=given_grant.boot, now_ms=0) == given_grant


def refusal(ring: Keyring, data: bytes, edge: str = EDGE, boot: str = BOOT, now_ms: int = NOW) -> tuple[int, str]:
    with pytest.raises(GrantRefused) as refused:
        open_grant(ring, data, edge=edge, boot=boot, now_ms=now_ms)
    return refused.value.code, refused.value.reason


@given(st.data())
def test_no_bit_of_a_grant_can_be_changed(data):
    code, reason = refusal(RING, _flipped(seal_grant(RING, grant()), data))
    assert code == 40100
    assert reason in ("bad_mac", "malformed")


def test_a_grant_of_another_cluster_is_refused():
    assert refusal(RING, seal_grant(STRANGER, grant())) == (40100, "bad_mac")


def test_a_mac_of_another_purpose_makes_no_grant():
    head, payload = b"\x03new", msgspec.msgpack.encode(grant())
    _, mac = RING.sign(Purpose.CONNECTION_KEY, head + payload)
    assert refusal(RING, head + mac + payload) == (40100, "bad_mac")


def test_a_grant_serves_only_the_edge_process_it_was_given_to():
    sealed = seal_grant(RING, grant())
    assert refusal(RING, sealed, edge="spiffe://relay.example/edge/fra/e2") == (40100, "wrong_edge")
    assert refusal(RING, sealed, boot="later") == (40100, "wrong_edge")


@pytest.mark.parametrize("changes", [{"expires": NOW}, {"token_expires": NOW}, {"expires": NOW, "token_expires": None}])
def test_a_grant_ends_with_itself_or_its_token_whichever_is_first(changes):
    sealed = seal_grant(RING, grant(**changes))
    within = NOW + PROTOCOL.expiry_leeway_ms - 1
    assert open_grant(RING, sealed, edge=EDGE, boot=BOOT, now_ms=within).session == "SuJTceISnT"
    assert refusal(RING, sealed, now_ms=within + 1) == (40142, "expired")


@given(st.binary(max_size=120))
def test_any_bytes_are_a_refused_grant(data):
    assert refusal(RING, data)[0] == 40100


def test_signed_nonsense_is_malformed():
    payload = msgspec.msgpack.encode(["not", "a", "grant"])
    _, mac = RING.sign(Purpose.GRANT, b"\x03new" + payload)
    assert refusal(RING, b"\x03new" + mac + payload) == (40100, "malformed")


# --- connection keys -------------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=8, max_size=16))
def test_a_connection_id_is_ten_url_safe_characters(random):
    assert len(new_connection_id(random)) == 10
    assert ":" not in new_connection_id(random)


def test_a_connection_id_needs_its_random_bytes():
    with pytest.raises(ValueError, match="random"):
        new_connection_id(b"1234567")


@given(st.binary(min_size=8, max_size=8), st.integers(0, 999_999_999), st.binary(min_size=6, max_size=48))
def test_a_connection_key_says_which_connection_it_is_for(id_bytes, incarnation, random):
    connection_id = new_connection_id(id_bytes)
    key = make_key(RING, "app1", connection_id, incarnation, random)
    assert key.startswith(f"{connection_id}!{incarnation}.")
    parsed = parse_key(RING, "app1", key)
    assert parsed is not None
    assert parsed[:2] == (connection_id, incarnation)
    assert parse_key(Keyring([OLD, NEW]), "app1", key) == parsed
    assert parse_key(RING, "app2", key) is None
    assert parse_key(STRANGER, "app1", key) is None


KEY = make_key(RING, "app1", "SuJTceISnT", 1, b"123456789")


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_no_character_of_a_connection_key_can_be_changed(at, character):
    changed = KEY[:at] + character + KEY[at + 1 :]
    assert (parse_key(RING, "app1", changed) is None) == (changed != KEY)


@pytest.mark.parametrize(
    "text", ["", "_____!ablyjs_test_fake-key____", "ably-python-fake-key", "0123456789abcdef-99", KEY + "\n", KEY[:-1], "invalid", None]
)
def test_other_keys_are_none(text):
    assert parse_key(RING, "app1", text) is None


@given(st.text())
def test_any_text_is_no_connection_key(text):
    assert parse_key(RING, "app1", text) is None


@pytest.mark.parametrize(
    "arguments", [("short", 1, b"123456789"), ("SuJTceISnT", -1, b"123456789"), ("SuJTceISnT", 1, b"1"), ("a!b:c.d/ef", 1, b"9" * 9)]
)
def test_a_key_that_could_not_be_read_is_not_made(arguments):
    with pytest.raises(ValueError, match="connection id"):
        make_key(RING, "app1", *arguments)


def test_a_connection_key_has_its_parts():
    assert parse_key(RING, "app1", KEY) == ConnectionKey("SuJTceISnT", 1, "MTIzNDU2Nzg5")


# --- native tokens ---------------------------------------------------------------------------------------------------------------------

TOKENS = st.builds(
    NativeToken, st.from_regex(r"[A-Za-z0-9_-]{1,10}\.[A-Za-z0-9_-]{1,10}", fullmatch=True), st.none() | TEXT, TEXT, TIMES, TIMES
)


@given(TOKENS)
def test_a_native_token_comes_back_as_it_was_given(token):
    text = seal_token(RING, token)
    assert ":" not in text
    assert text.startswith(token.app + ".")
    assert open_token(RING, text) == token
    assert open_token(Keyring([OLD, NEW]), text) == token
    assert open_token(STRANGER, text) is None


def test_a_native_token_cannot_be_moved_to_another_app():
    text = seal_token(RING, NativeToken("app1.key", None, "{}", 1, 2))
    assert open_token(RING, "app2" + text[4:]) is None


def test_a_native_token_tells_nothing():
    text = seal_token(RING, NativeToken("app1.key", "bob", '{"secret-channel":["*"]}', 1, 2))
    assert text != seal_token(RING, NativeToken("app1.key", "bob", '{"secret-channel":["*"]}', 1, 2))
    assert len(text) < 343


@given(st.one_of(st.text(), st.from_regex(r"app1\.[A-Za-z0-9_-]{0,90}", fullmatch=True)))
def test_any_text_is_no_native_token(text):
    assert open_token(RING, text) is None
