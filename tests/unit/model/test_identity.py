"""Whose words they are: identity, credentials in headers, token requests. Ably protocol docs, 7.1, 7.3, 7.7 and 4.6."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.capability import Capability
from relay.model.credentials import (
    ApiKey,
    basic_of_key,
    client_id_of_header,
    is_jwt,
    is_key_name,
    key_of_basic,
    split_key,
    token_of_bearer,
)
from relay.model.errors import RelayError
from relay.model.identity import identify, on_behalf
from relay.model.token_request import canonical_text, check_token_request, mac
from tests.support.refusals import code_or

ANY_TEXT = st.text(st.characters(exclude_categories=()))

# --- 7.7 -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("basic", "token", "claimed", "result"),
    [
        (True, None, None, "*"),
        (True, None, "C", "C"),
        (False, "T", None, "T"),
        (False, "T", "T", "T"),
        (False, "*", None, "*"),
        (False, "*", "C", "C"),
        (False, None, None, None),
        (False, None, "C", 40102),
        (False, "T", "C", 40102),
        (True, None, "*", 40012),
        (False, "*", "*", 40012),
        (True, None, "", 40012),
        (False, "T", "", 40012),
        (False, "", None, 40012),
        (False, 7, None, 40012),
        (False, "T", 7, 40012),
        (False, "\ud800", None, 40012),
    ],
)
def test_which_identity_results(basic, token, claimed, result):
    assert code_or(lambda: identify(token, claimed, basic=basic)) == result


@pytest.mark.parametrize(
    ("session", "connection", "result"),
    [
        *(("*", "*", "*"), ("*", "bob", "bob"), ("*", None, "*"), ("bob", "bob", "bob"), ("bob", "*", "bob"), (None, None, None)),
        *(("bob", "al", 40006), ("bob", None, 40006), (None, "bob", 40006), (None, "*", None)),
    ],
)
def test_whose_a_publish_on_behalf_of_a_connection_is(session, connection, result):
    assert code_or(lambda: on_behalf(session, connection)) == result


# --- 7.1 -------------------------------------------------------------------------------------------------------------------------------


def test_a_key_is_split_at_its_first_colon():
    assert split_key("app1.key-1:se:cret") == ApiKey("app1", "app1.key-1", "se:cret")
    assert "cret" not in repr(split_key("app1.key-1:se:cret"))


@pytest.mark.parametrize(
    "text", ["", "x", "app1.key1", "app1.key1:", ":secret", "app1:secret", "app1.key1.x:secret", "äpp.key:s", "app1.key1\n:s"]
)
def test_what_is_no_key(text):
    assert split_key(text) is None


def test_key_names():
    assert is_key_name("app1.key1")
    assert not is_key_name("app1")
    assert not is_key_name(None)


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJpYXQiOjF9.c2ln"


@pytest.mark.parametrize("token", [JWT, "app1.AbC_-9", "a.b.c.d.e"])
def test_a_bearer_is_the_token_or_its_base64(token):
    assert token_of_bearer(token) == token
    assert token_of_bearer(base64.b64encode(token.encode()).decode()) == token
    assert token_of_bearer(base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()) == token


def test_a_jwt_is_told_by_its_parts():
    assert is_jwt(JWT)
    assert not is_jwt("app1.AbC")


@given(st.text())
def test_headers_survive_base64(text):
    assert client_id_of_header(basic_of_key(text)) == text
    assert key_of_basic(basic_of_key(text)) == text


@given(ANY_TEXT)
def test_any_header_is_read_without_raising(text):
    token_of_bearer(text)
    key_of_basic(text)
    split_key(text)


# --- 7.3 -------------------------------------------------------------------------------------------------------------------------------

NOW = 1_763_845_200_000
KEY = {"key_name": "App.Key", "secret": "s3cret", "key_capability": Capability.parse({"chat:*": ["publish", "subscribe"]}), "now_ms": NOW}


def signed(**changes: object) -> dict[str, object]:
    body = {"keyName": "App.Key", "timestamp": NOW, "nonce": "0123456789abcdef", **changes}
    body = {key: value for key, value in body.items() if value is not None}
    text = "".join(str(body.get(key, "")) + "\n" for key in ("keyName", "ttl", "capability", "clientId", "timestamp", "nonce"))
    body["mac"] = base64.b64encode(hmac.new(b"s3cret", text.encode(), hashlib.sha256).digest()).decode()
    return body


def test_the_signed_text():
    text = canonical_text("App.Key", 3_600_000, '{"chat:*":["publish"]}', None, NOW, "0123456789abcdef")
    assert text == 'App.Key\n3600000\n{"chat:*":["publish"]}\n\n1763845200000\n0123456789abcdef\n'
    assert len(base64.b64decode(mac("secret", text))) == 32


def test_a_bare_request_gets_the_keys_capability_for_an_hour():
    checked = check_token_request(signed(), **KEY)
    assert (checked.key_name, checked.ttl_ms, checked.client_id, checked.nonce) == ("App.Key", 3_600_000, None, "0123456789abcdef")
    assert checked.capability == KEY["key_capability"]


def test_a_full_request():
    capability = '{ "chat:x" : ["*"], "other": ["publish"] }'
    checked = check_token_request(signed(ttl=5_000, capability=capability, clientId="bob"), **KEY)
    assert (checked.ttl_ms, checked.client_id) == (5_000, "bob")
    assert checked.capability.canonical() == '{"chat:x":["publish","subscribe"]}'


@pytest.mark.parametrize(("ttl", "result"), [(1, 1), (86_400_000, 86_400_000), ("60000", 60_000), (60_000.0, 40003), (60_000.5, 40003)])
def test_ttl_is_an_integer_or_its_text(ttl, result):
    text = str(int(ttl)) if ttl == 60_000.0 else str(ttl)  # as JavaScript writes it
    body = {**signed(ttl=text), "ttl": ttl}
    assert code_or(lambda: check_token_request(body, **KEY).ttl_ms) == result


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        *(({"keyName": "App.Other"}, 40101), ({"timestamp": NOW - 120_001}, 40104), ({"timestamp": NOW + 120_001}, 40104)),
        *(({"timestamp": None}, 40104), ({"timestamp": "soon"}, 40104), ({"nonce": None}, 40003), ({"nonce": "0123456789abcde"}, 40003)),
        *(({"nonce": 1_234_567_890_123_456}, 40003), ({"ttl": 0}, 40003), ({"ttl": -1}, 40003), ({"ttl": "abc"}, 40003)),
        *(
            ({"ttl": 86_400_001}, 40003),
            ({"ttl": "9" * 5_000}, 40003),
            ({"ttl": True}, 40003),
            ({"clientId": ""}, 40012),
            ({"clientId": 7}, 40012),
        ),
        *(({"capability": "x"}, 40000), ({"capability": '{"a":[]}'}, 40000), ({"capability": '{"a":["*","publish"]}'}, 40000)),
        *(
            ({"capability": '{"a":["nonsense"]}'}, 40000),
            ({"capability": '{"channelx":["publish"]}'}, 40160),
            ({"capability": "{}"}, 40160),
        ),
    ],
)
def test_what_is_refused(changes, code):
    assert code_or(lambda: check_token_request(signed(**changes), **KEY)) == code


@pytest.mark.parametrize("timestamp", [NOW - 120_000, NOW + 120_000])
def test_two_minutes_are_current(timestamp):
    assert check_token_request(signed(timestamp=timestamp), **KEY)


@pytest.mark.parametrize(
    "changes", [{"mac": None}, {"mac": 7}, {"mac": "x"}, {"mac": "\ud800"}, {"ttl": 7}, {"clientId": "eve"}, {"clientId": "\ud800"}]
)
def test_a_request_without_the_right_mac_is_refused(changes):
    assert code_or(lambda: check_token_request({**signed(), **changes}, **KEY)) == 40101
    assert "mac" in changes or code_or(lambda: check_token_request({**signed(), **changes}, **KEY, authenticated=True)) == 40101


def test_a_revocable_key_gives_an_hour_at_most():
    assert check_token_request(signed(ttl=3_600_000), **KEY, revocable=True)
    assert code_or(lambda: check_token_request(signed(ttl=3_600_001), **KEY, revocable=True)) == 40003


def test_any_client_may_be_asked_for():
    assert check_token_request(signed(clientId="*"), **KEY).client_id == "*"


def test_with_basic_auth_nothing_need_be_signed():
    assert check_token_request({}, **KEY, authenticated=True).nonce is None
    assert code_or(lambda: check_token_request({}, **KEY)) == 40101
    assert code_or(lambda: check_token_request({"timestamp": 1}, **KEY, authenticated=True)) == 40104
    assert (
        check_token_request({"capability": {"chat:a": ["publish"]}}, **KEY, authenticated=True).capability.canonical()
        == '{"chat:a":["publish"]}'
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(),
    lambda v: st.lists(v) | st.dictionaries(ANY_TEXT, v),
    max_leaves=5,
)
FIELDS = st.sampled_from(["keyName", "ttl", "capability", "clientId", "timestamp", "nonce", "mac", "x"])


@given(VALUES | st.dictionaries(FIELDS, VALUES), st.booleans())
def test_any_body_is_a_request_or_refused(body, authenticated):
    try:
        checked = check_token_request(body, **KEY, authenticated=authenticated)
    except RelayError:
        return
    assert authenticated
    assert json.loads(checked.capability.canonical())
