"""Whatever a client sends costs that client alone, and never raises."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.ably.codec import Malformed, decode
from edge.events import LinkFrame, RestAsked
from relay.link.frames import Append, Open, Opened
from tests.unit.edge.playbook import Edge

SEEDS: list[dict[str, Any]] = [
    {"action": 15, "channel": "c", "msgSerial": 0, "messages": [{"name": "n", "data": "d", "extras": {"headers": {"a": 1}}}]},
    {"action": 10, "channel": "c", "flags": 262144, "params": {"modes": "subscribe"}, "channelSerial": "abcdefgh-0000-0000000000000001"},
    {"action": 12, "channel": "c"},
    {"action": 17, "auth": {"accessToken": "a.b.c"}},
    {"action": 0, "id": "x"},
    {"action": 14, "channel": "c", "msgSerial": 1, "presence": [{"action": 2}]},
    {"action": 16, "channel": "c"},
    {"action": 7},
    {"action": 5},
]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.binary(max_size=8), st.just("c")
)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)), max_leaves=8
)
FIELDS = ["action", "id", "channel", "channelSerial", "msgSerial", "flags", "params", "messages", "presence", "auth", "count", "zzz"]
shaped = st.one_of(
    st.fixed_dictionaries({"action": st.integers(-1, 25)}, optional=dict.fromkeys(FIELDS[1:], values)),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=5),
    st.builds(lambda seed, name, value: {**seed, name: value}, st.sampled_from(SEEDS), st.sampled_from(FIELDS), values),
    st.builds(
        lambda message: {"action": 15, "channel": "c", "msgSerial": 0, "messages": [message]},
        st.dictionaries(
            st.sampled_from(["name", "data", "encoding", "id", "clientId", "connectionId", "extras", "action", "serial", "version"]),
            values,
            max_size=4,
        ),
    ),
)


def encoded(value: Any, *, msgpack: bool) -> bytes:
    try:
        return msgspec.msgpack.encode(value) if msgpack else msgspec.json.encode(value)
    except (OverflowError, TypeError, ValueError):
        return repr(value).encode()


def mutated(data: bytes, cuts: list[tuple[int, bytes]]) -> bytes:
    for where, piece in cuts:
        at = where % (len(data) + 1)
        data = data[:at] + piece + data[at + max(len(piece) - 1, 0) :]
    return data


def frames(*, msgpack: bool) -> st.SearchStrategy[bytes]:
    whole = st.builds(lambda value: encoded(value, msgpack=msgpack), shaped)
    broken = st.builds(mutated, whole, st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=4)), min_size=1, max_size=3))
    return st.one_of(whole, broken, st.binary(max_size=64))


def unharmed(edge: Edge, data: list[bytes], query: str) -> None:
    victim = edge.connect("key=a.b:c&v=6")
    sender = edge.connect(query)
    opening, _ = edge.attach(victim, "c")
    for piece in data:
        edge.send_raw(sender, piece)
        if sender.closed is not None:
            break
    for append in edge.take(Append):
        # What got through is what the link and every subscriber can carry.
        edge.core(edge.record(opening.req, append.req + 100, *append.messages))
    assert victim.closed is None
    victim.inbox.clear()
    edge.core(edge.record(opening.req, 10_000))
    edge.gets(victim, action=15, channelSerial=edge.serial("c", 10_000))


@settings(max_examples=1250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(frames(msgpack=False), min_size=4, max_size=4))
def test_malformed_json_costs_only_its_sender(data: list[bytes]) -> None:
    unharmed(Edge(), data, "key=a.b:c&v=6")


@settings(max_examples=1250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(frames(msgpack=True), min_size=4, max_size=4))
def test_malformed_msgpack_costs_only_its_sender(data: list[bytes]) -> None:
    unharmed(Edge(), data, "key=a.b:c&v=6&format=msgpack")


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_decoding_has_two_outcomes(data: bytes, msgpack: bool) -> None:
    with contextlib.suppress(Malformed):
        decode(data, msgpack=msgpack)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=200), st.dictionaries(st.just("authorization"), st.text(max_size=40)))
def test_any_query_string_is_admitted_or_refused(query: str, headers: dict[str, str]) -> None:
    edge = Edge()
    client = edge.open(query, headers=headers)
    assert edge.sent[1] or client.closed == 1000


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["GET", "POST", "DELETE", "PATCH", "OPTIONS"]),
    st.one_of(st.text(max_size=60), st.sampled_from(["/channels/c/messages", "/keys/a.b/requestToken", "/apps", "/apps/x"])),
    st.text(max_size=60),
    st.dictionaries(
        st.sampled_from(["content-type", "accept", "authorization", "x-ably-clientid", "x-ably-version"]),
        st.one_of(st.text(max_size=20), st.sampled_from(["application/x-msgpack", "Bearer a.b.c"])),
    ),
    st.binary(max_size=100),
)
def test_any_request_is_answered(method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> None:
    edge = Edge(sandbox=True)
    edge.post(RestAsked(1, method, path, query, headers, body, True, "::1"))
    edge.wait(30)
    assert 1 in edge.answers


def test_deep_nesting_is_refused() -> None:
    for data in (b"[" * 100_000, b'{"action":15,"messages":' + b"[" * 10_000, b"\x91" * 100_000):
        for query in ("key=a.b:c&v=6", "key=a.b:c&v=6&format=msgpack"):
            unharmed(Edge(), [data], query)


def test_answers_of_a_core_to_nothing_mean_nothing(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    for req in (0, 999, -1):
        edge.refused(req, 50000)
        edge.core(Opened(req, "garbage"), edge.record(req, 5))
    edge.post(LinkFrame(77, edge.record(1, 5)))
    edge.gets_nothing(client)


def test_a_garbled_position_from_a_core_is_tried_again(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c")
    edge.core(Opened(edge.take(Open)[0].req, "garbage"))
    edge.wait(2)
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", 1)))
    edge.gets(client, action=11)
