"""What makes a publish valid, and the form in which it is kept. Ably protocol docs, 4.1 to 4.6 and 4.9."""

from __future__ import annotations

import base64
import copy
import datetime
import json as jsonlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL
from relay.model.message import Message
from relay.model.publish import connection_key_of, is_ephemeral, messages_from_wire, recheck, relayed_extras, settle, size_of
from tests.support.refusals import code_or

RULES: dict[str, Any] = {"client_id": "*", "connection_id": "SuJTceISnT", "max_bytes": 65_536}


def refusal(call: Any) -> int:
    with pytest.raises(RelayError) as refused:
        call()
    return refused.value.code


def read(item: object, *, json: bool = True, rest: bool = False) -> Message:
    (message,) = messages_from_wire(item, json=json, rest=rest)
    return message


def publish(*items: dict[str, Any], json: bool = True, **changes: Any) -> tuple[str | None, list[Message]]:
    messages = messages_from_wire(list(items), json=json)
    return settle(messages, **{**RULES, **changes}), messages


# --- 4.1, 4.4: from the wire -----------------------------------------------------------------------------------------------------------


def test_one_message_or_several():
    assert messages_from_wire({"name": "a"}, json=True) == [Message(name="a")]
    assert messages_from_wire([{"name": "a"}, {}], json=True) == [Message(name="a"), Message()]


def test_null_is_absent_and_the_empty_string_is_a_value():
    nothing = {
        "name": None,
        "data": None,
        "encoding": None,
        "clientId": None,
        "extras": None,
        "id": None,
        "action": None,
        "connectionId": None,
    }
    assert read(nothing) == Message()
    assert read({"name": "", "data": ""}) == Message(name="", data="")
    assert read({"data": "x", "encoding": ""}) == Message(data="x")


def test_a_last_step_of_base64_is_undone_for_json_only():
    assert read({"data": "AAEC", "encoding": "base64"}) == Message(data=b"\0\1\2")
    assert read({"data": "AAEC", "encoding": "json/utf-8/cipher+aes-128-cbc/base64"}) == Message(
        data=b"\0\1\2", encoding="json/utf-8/cipher+aes-128-cbc"
    )
    assert read({"data": "AA\nEC\r\n", "encoding": "base64"}).data == b"\0\1\2"
    assert read({"data": "AAEC", "encoding": "base64"}, json=False) == Message(data="AAEC", encoding="base64")
    assert read({"data": b"\0\1", "encoding": "utf-8"}, json=False) == Message(data=b"\0\1", encoding="utf-8")


@pytest.mark.parametrize("encoding", ["nonsense", "json/utf-8", "base64/json", "xbase64", "utf-8"])
def test_other_encodings_of_a_string_are_left_alone(encoding):
    assert read({"data": "{broken", "encoding": encoding}) == Message(data="{broken", encoding=encoding)


def test_base64_without_data_says_nothing():
    assert read({"encoding": "base64"}) == Message(encoding="base64")


def test_rest_takes_objects_and_arrays_as_json_text():
    assert read({"data": {"a": [1, "ü"]}}, rest=True) == Message(data='{"a":[1,"ü"]}', encoding="json")
    assert read({"data": []}, rest=True) == Message(data="[]", encoding="json")


@pytest.mark.parametrize("data", [True, False, 0, 1.5])
@pytest.mark.parametrize("rest", [True, False])
def test_other_scalars_are_no_data(data, rest):
    assert refusal(lambda: read({"data": data}, rest=rest)) == 40013


@pytest.mark.parametrize(
    ("item", "code"),
    [
        *(("x", 40000), (None, 40000), (7, 40000), ([[]], 40000), ([], 40000), ([{}, None], 40000)),
        *(({"data": {}}, 40013), ({"data": []}, 40013), ({"encoding": 1}, 40013), ({"data": "?", "encoding": "base64"}, 40013)),
        *(({"data": "AAE", "encoding": "base64"}, 40013), ({"data": "ü", "encoding": "x/base64"}, 40013), ({"name": 1}, 40000)),
        *(({"a": 1, "b": 1, "id": 1}, 40031), ({"a": 1, "b": 1, "clientId": 1}, 40012), ({"a": 1, "b": 1, "connectionId": 1}, 40006)),
        *(({"a": 1, "b": 1, "extras": []}, 40032), ({"a": 1, "b": 1, "action": "0"}, 40000), ({"a": 1, "b": 1, "action": True}, 40000)),
        *(({"a": 1, "b": 1, "action": -1}, 40000), ({"a": 1, "b": 1, "action": 6}, 40000), ([{}] * 1001, 40034)),
        *(({"a": 1, "action": 1, "serial": 1}, 40003), ({"a": 1, "action": 1, "version": 1}, 40000)),
    ],
)
def test_wrong_types_are_refused(item, code):
    assert refusal(lambda: messages_from_wire(item, json=True)) == code


@pytest.mark.parametrize("field", [{"id": 1}, {"clientId": 1}, {"connectionId": 1}, {"extras": 1}, {"action": "x"}])
def test_every_field_is_looked_at_however_few_there_are(field):
    assert refusal(lambda: read(field)) in (40031, 40012, 40006, 40032, 40000)
    assert refusal(lambda: read({"data": "x", **field})) in (40031, 40012, 40006, 40032, 40000)


def test_raw_objects_with_an_encoding_are_refused():
    assert refusal(lambda: read({"data": {}, "encoding": "json"}, rest=True)) == 40013


# --- 4.6: clientId ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("publisher", "given_id", "result"),
    [
        *(("*", None, None), ("*", "X", "X"), ("C", None, "C"), ("C", "C", "C"), ("C", "X", 40012), (None, None, None), (None, "X", 40012)),
        *(("*", "*", 40012), ("*", "", 40012), ("C", "*", 40012), ("C", "", 40012), (None, "", 40012), (None, "*", 40012)),
    ],
)
def test_whose_a_message_is(publisher, given_id, result):
    message = Message(client_id=given_id)
    code = code_or(lambda: settle([message], **{**RULES, "client_id": publisher}))
    assert (message.client_id if code is None else code) == result


def test_the_connection_id_of_a_message_is_its_own_or_refused():
    _, (message,) = publish({"connectionId": "SuJTceISnT"})
    assert message.connection_id is None, "the record says it once"
    assert refusal(lambda: publish({"connectionId": "another"})) == 40006
    assert refusal(lambda: publish({"connectionId": "another"}, connection_id=None)) == 40006


def test_what_only_a_server_sets_is_cleared():
    message = Message(timestamp=7, serial="x", version={"serial": "x"})
    settle([message], **RULES)
    assert message == Message()


def test_the_connection_key_of_a_rest_publish():
    assert connection_key_of({"name": "a"}) is None
    assert connection_key_of({"connectionKey": "k"}) == "k"
    assert connection_key_of([{"connectionKey": "k"}, {"connectionKey": "k"}]) == "k"
    for odd in (
        {"connectionKey": 1},
        {"connectionKey": []},
        [{"connectionKey": "k"}, {}],
        [{"connectionKey": "k"}, {"connectionKey": "l"}],
    ):
        assert refusal(lambda odd=odd: connection_key_of(odd)) == 40006


# --- 4.3: ids --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "base"),
    [
        *(([None], None), (["some_msg_id"], "some_msg_id"), (["id:0"], "id:0"), ([":"], ":"), ([None, None], None)),
        *((["b:0", "b:1", "b:2"], "b"), (["b:c:0", "b:c:1"], "b:c"), ([f"b:{index}" for index in range(1000)], "b")),
        *(([""], 40031), (["b:0", None], 40031), ([None, "b:1"], 40031), (["b:0", "b:2"], 40031), (["b:1", "b:0"], 40031)),
        *((["b:0", "c:1"], 40031), (["b", "b"], 40031), ([":0", ":1"], 40031), (["b:0", "b:01"], 40031), (["x" * 513], 40031)),
    ],
)
def test_ids_of_the_client(ids, base):
    messages = [Message(id=id_) for id_ in ids]
    if base == 40031:
        assert refusal(lambda: settle(messages, **RULES)) == 40031
    else:
        assert settle(messages, **RULES) == base
        assert [message.id for message in messages] == ids, "kept as given"


# --- 4.5: extras -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"headers": {"a": "b", "c": 1, "d": 1.5, "e": True, "f": None}},
        {"headers": {}},
        {"push": {"notification": {"title": "x"}}},
        {"push": [{"a": 1}]},
        {"push": None},
        {"ephemeral": True},
        {"ref": {"type": "com.ably.reply", "timeserial": "x"}, "ai": {"a": [1]}, "kafka": {"key": "k"}},
    ],
)
def test_permitted_extras_come_back_unchanged(extras):
    _, (message,) = publish({"extras": copy.deepcopy(extras)})
    assert message.extras == extras


@pytest.mark.parametrize(
    "extras",
    [
        *({"x": 1}, {"headers": {}, "x": 1}, {"headers": []}, {"headers": None}, {"headers": {"a": {}}}, {"headers": {"a": []}}),
        *({"ephemeral": 1}, {"ephemeral": None}, {"ref": "x"}, {"ai": []}, {"kafka": "k"}, {1: 2}, {b"push": 1}),
        *({"push": b"x"}, {"push": {"a": b"x"}}, {"push": {1: "x"}}, {"push": float("nan")}, {"push": 2**64}, {"push": -(2**63) - 1}),
        *({"push": datetime.datetime.now(datetime.UTC)}, {"push": msgspec.msgpack.Ext(1, b"x")}, {"headers": {"a": float("inf")}}),
    ],
)
def test_other_extras_are_refused(extras):
    assert refusal(lambda: publish({"extras": extras})) == 40032


def test_the_message_names_the_field():
    with pytest.raises(RelayError, match="Message has impermissible extras fields: x"):
        publish({"extras": {"x": 1}})


def test_extras_nest_so_deep_and_no_deeper():
    deep: object = "leaf"
    for _ in range(PROTOCOL.max_extras_depth):
        deep = [deep]
    publish({"extras": {"push": deep}})
    assert refusal(lambda: publish({"extras": {"push": [deep]}})) == 40032


def test_what_only_servers_may_say_is_dropped():
    _, (message,) = publish({"extras": {"delta": {"from": "x"}, "userClaim": "x", "headers": {"a": 1}}})
    assert message.extras == {"headers": {"a": 1}}
    _, (message,) = publish({"extras": {"delta": {}}})
    assert message.extras is None


def test_privileged_extras_need_the_operation_and_are_not_relayed():
    extras = {"privileged": {"skipRule": "*"}, "headers": {"a": 1}}
    assert refusal(lambda: publish({"extras": extras})) == 40160
    _, (message,) = publish({"extras": extras}, privileged=True)
    assert message.extras == extras
    assert relayed_extras(message.extras) == {"headers": {"a": 1}}
    assert relayed_extras({"privileged": {}}) is None
    assert relayed_extras(None) is None


def test_the_permitted_keys_are_a_setting():
    assert refusal(lambda: publish({"extras": {"push": 1}}, extras_allowed={"headers"})) == 40032


def test_messages_of_one_publish_are_all_ephemeral_or_none():
    yes, no = {"extras": {"ephemeral": True}}, {"extras": {"ephemeral": False}}
    assert is_ephemeral(publish(yes, yes)[1])
    assert not is_ephemeral(publish(no, {})[1])
    for mixed in ((yes, no), (no, yes), ({}, yes), (yes, {})):
        assert refusal(lambda mixed=mixed: publish(*mixed)) == 40032


# --- 4.7: only creation, until a namespace says otherwise ------------------------------------------------------------------------------


def test_changes_of_messages_need_a_namespace_for_them():
    change = {"action": 1, "serial": "s", "data": "x"}
    assert refusal(lambda: publish(change)) == 93002
    _, (message,) = publish(change, mutable=True)
    assert (message.action, message.serial) == (1, "s")
    assert refusal(lambda: publish({"action": 2}, mutable=True)) == 40003
    assert refusal(lambda: publish({"action": 4})) == 40000


# --- 4.9, counts and sizes -------------------------------------------------------------------------------------------------------------


def test_size():
    assert size_of(Message()) == 0
    assert size_of(Message(name="nü", data="dü", client_id="cü", extras={"headers": {"ü": 1}})) == 3 + 3 + 3 + len(
        '{"headers":{"ü":1}}'.encode()
    )
    assert size_of(read({"data": base64.b64encode(b"x" * 100).decode(), "encoding": "base64"})) == 100, "as bytes, not as base64"
    assert size_of(Message(id="i" * 500, encoding="e")) == 0


def test_the_limit_is_inclusive_and_the_sum_counts():
    publish({"data": "x" * 60}, {"name": "y" * 4}, max_bytes=64)
    with pytest.raises(RelayError, match=r"size was 65 bytes, limit is 64 bytes") as refused:
        publish({"data": "x" * 60}, {"name": "y" * 5}, max_bytes=64)
    assert (refused.value.code, refused.value.info.status_code) == (40009, 413)


def test_an_identity_filled_in_by_us_never_makes_a_publish_too_large():
    settle([Message(data="x" * 64)], client_id="bob", connection_id=None, max_bytes=64)
    assert refusal(lambda: settle([Message(data="x" * 64, client_id="bob")], client_id="*", connection_id=None, max_bytes=64)) == 40009


def test_a_thousand_messages_and_no_more():
    settle([Message() for _ in range(1000)], **RULES)
    assert refusal(lambda: settle([Message() for _ in range(1001)], **RULES)) == 40034
    assert refusal(lambda: settle([], **RULES)) == 40000


def test_what_size_does_not_count_is_bounded_too():
    assert refusal(lambda: settle([Message(data="x", encoding="e" * 513)], **RULES)) == 40013


# --- the core checks again -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [1, True, {}, [], 1.5])
def test_a_core_does_not_take_an_edges_word_for_types(data):
    assert refusal(lambda: recheck([Message(data=data)], **RULES)) == 40013


WIRE_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(st.characters(exclude_categories=())) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers() | st.binary(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
EXTRAS_VALUES = st.dictionaries(
    st.sampled_from(["headers", "push", "ephemeral", "privileged", "ref", "ai", "kafka", "delta", "userClaim", "x"]),
    WIRE_VALUES,
    max_size=3,
)
FIELDS = {
    "id": st.sampled_from(["a", "b:0", "b:1", ""]) | WIRE_VALUES,
    "name": st.text(max_size=5) | WIRE_VALUES,
    "data": st.text(max_size=5) | st.binary(max_size=5) | WIRE_VALUES,
    "encoding": st.sampled_from(["base64", "json", "json/base64", "utf-8/base64", ""]) | WIRE_VALUES,
    "clientId": st.sampled_from(["bob", "al", "*", ""]) | WIRE_VALUES,
    "connectionId": st.just("SuJTceISnT") | WIRE_VALUES,
    "extras": EXTRAS_VALUES | WIRE_VALUES,
    "action": st.integers(-1, 6) | WIRE_VALUES,
    "serial": WIRE_VALUES,
    "version": WIRE_VALUES,
    "timestamp": WIRE_VALUES,
}
ITEMS = st.fixed_dictionaries({}, optional=FIELDS) | WIRE_VALUES
PUBLISHES = ITEMS | st.lists(ITEMS, max_size=4)


@given(PUBLISHES, st.booleans(), st.booleans(), st.sampled_from([None, "*", "bob"]), st.booleans())
@example([{"data": "\ud800"}], True, False, None, False)
@example([{"name": "\ud800"}], True, False, None, False)
@example([{"clientId": "\ud800"}], True, False, "*", False)
@example([{"encoding": "\ud800"}], True, False, "*", False)
@example([{"id": "\ud800"}], True, False, "*", False)
@example([{"extras": {"push": "\ud800"}}], True, False, "*", False)
@example([{"extras": {"push": {"\ud800": 1}}}], True, False, "*", False)
@example([{"data": {"a": "\ud800"}}], True, True, "*", False)
def test_anything_is_a_publish_that_can_be_stored_or_refused_and_a_core_agrees(items, json, rest, client_id, mutable):
    rules = {"client_id": client_id, "connection_id": "SuJTceISnT", "max_bytes": 1_000, "mutable": mutable, "privileged": True}
    messages = code_or(lambda: messages_from_wire(items, json=json, rest=rest))
    base = messages if isinstance(messages, int) else code_or(lambda: settle(messages, **rules))
    if isinstance(base, int):
        assert 40000 <= base < 41000 or base == 93002
        return
    stored = msgspec.msgpack.encode(messages)
    at_core = msgspec.msgpack.decode(stored, type=list[Message])
    assert recheck(at_core, **rules) == base
    assert msgspec.msgpack.encode(at_core) == stored, "settled is settled"
    for message in messages:
        assert message.extras is None or jsonlib.loads(msgspec.json.encode(message.extras)) == message.extras


@given(st.text(), st.binary(), st.sampled_from([None, "json", "utf-8", "json/utf-8/cipher+aes-256-cbc", "nonsense"]))
def test_data_survives_either_format(text, data, encoding):
    as_json = {"data": base64.b64encode(data).decode(), "encoding": f"{encoding}/base64" if encoding else "base64"}
    assert read(as_json) == read({"data": data, "encoding": encoding}, json=False) == Message(data=data, encoding=encoding)
    assert read({"data": text, "encoding": encoding}) == Message(data=text, encoding=encoding)
