"""An edge that breaks the rules is refused and counted under its own reason; nothing that it sends makes a core raise."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.effects import LinkClose, Produce
from core.events import EdgeFrame, EndOffset, Overfull, Reported, Tailed, Tick
from core.log import LogRecord
from core.node import CoreNode
from relay.link import calls
from relay.link.frames import (
    Admit,
    Admitted,
    Append,
    Credit,
    Depart,
    Fetch,
    Hello,
    Lane,
    Open,
    Opened,
    Present,
    Renew,
    Shut,
    ToCore,
)
from relay.model.grants import open_grant, seal_grant
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits
from relay.model.message import Message
from relay.model.serials import Serial
from tests.unit.core.dialogue import EDGE, OTHER_EDGE, SECRET, STREAM, Dialogue, token


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue()
    core.edge_up(1)
    core.edge_up(2, OTHER_EDGE, "boot-2")
    return core


def reworked(core: Dialogue, admitted: Admitted, ring: Keyring | None = None, **changes: Any) -> bytes:
    """The grant with other contents, signed by `ring` (the cluster's own unless told otherwise)."""
    grant = open_grant(core.keyring, admitted.grant, edge=EDGE, boot="boot-1", now_ms=core.now_ms)
    return seal_grant(ring or core.keyring, msgspec.structs.replace(grant, **changes))


def refused(core: Dialogue, session: str, link: int = 1) -> bool:
    """Whether the session can neither publish nor read on the link."""
    open_code = core.answer(core.open("a", session, link=link)).error.code
    append_code = core.answer(core.append(session, "a", link=link)).error.code
    assert core.take(Produce) == []
    assert open_code == 40160
    assert append_code in (40101, 40142, 80016)
    return True


# --- grants


def test_a_channel_without_a_witness(core):
    for witness in ("", "aaaaaaaaaa", core.admitted(link=2).session):
        assert core.answer(core.open("a", witness)).error.code == 40160
    assert core.counted("open.no_witness") == 3
    writes = core.record("a")
    core.happens(Tailed([writes]))
    assert core.sent() == []


def test_a_channel_outside_its_grants(core):
    session = core.admitted(token("shop.chat")).session
    assert core.answer(core.open("private", session)).error.code == 40160
    assert core.answer(core.append(session, "private")).error.code == 40160
    assert (core.counted("open.capability"), core.counted("append.capability")) == (1, 1)


def test_a_witness_that_may_only_publish(core):
    session = core.admitted(token(**{"x-ably-capability": '{"a":["publish","presence"]}'})).session
    assert core.answer(core.open("a", session)).error.code == 40160
    assert core.counted("open.capability") == 1


def test_a_witness_that_may_read_through_filters_opens_and_sees_no_past_and_no_members(core):
    session = core.admitted(token("shop.filters", **{"x-ably-capability": '{"[filter]a":["*"]}'})).session
    assert isinstance(core.answer(core.open("a", session)), Opened)
    assert core.answer(core.open("b", session)).error.code == 40160
    for what, call in ((calls.MEMBERS, calls.Members(channel="a", limit=1)), (calls.REWIND, calls.Rewind(channel="a", limit=1))):
        core.edge_sends(Fetch(900, session, what, calls.encode(call)))
        assert core.answer(900).error.code == 40160


def test_a_channel_of_another_app(core):
    session = core.admitted().session
    assert core.answer(core.open("a", session, app="bank")).error.code == 40160
    assert core.counted("open.wrong_app") == 1


def test_another_edges_grant(core):
    admitted = core.admitted()
    core.edge_sends(Present(admitted.grant), 2)
    assert core.counted("grant.wrong_edge") == 1
    assert refused(core, admitted.session, link=2)


def test_a_grant_of_before_the_edge_restarted(core):
    admitted = core.admitted()
    core.edge_up(3, EDGE, "boot-3")
    core.edge_sends(Present(admitted.grant), 3)
    assert core.counted("grant.wrong_edge") == 1
    assert refused(core, admitted.session, link=3)


def test_a_grant_that_this_cluster_did_not_sign(core):
    admitted = core.admitted()
    core.edge_sends(Present(reworked(core, admitted, Keyring([("k1", b"\2" * 32)]), edge=OTHER_EDGE, boot="boot-2")), 2)
    assert core.counted("grant.bad_mac") == 1
    forged = bytearray(admitted.grant)
    forged[-1] ^= 1
    core.edge_sends(Present(bytes(forged)), 1)
    assert core.counted("grant.bad_mac") == 2
    core.edge_sends(Present(b""), 1)
    assert core.counted("grant.malformed") == 1
    assert refused(core, admitted.session, link=2)


def test_a_grant_of_an_older_incarnation(core):
    admitted = core.admitted()
    core.edge_sends(Present(reworked(core, admitted, edge=OTHER_EDGE, boot="boot-2", incarnation=1)), 2)
    assert isinstance(core.append(admitted.session, "a", link=2), int)
    assert len(core.kafka_writes()) == 1
    core.sent(2)
    core.edge_sends(Present(admitted.grant), 1)
    assert core.counted("grant.old_incarnation") == 1
    assert refused(core, admitted.session, link=1)
    assert (core.counted("open.old_incarnation"), core.counted("append.old_incarnation")) == (1, 1)


def test_a_departed_session_is_not_brought_back_with_its_grant(core):
    admitted = core.admitted()
    core.edge_sends(Depart(admitted.session, True))
    core.edge_sends(Present(admitted.grant))
    assert core.counted("grant.old_incarnation") == 1
    assert refused(core, admitted.session)


def test_an_edge_cannot_end_another_edges_session(core):
    admitted = core.admitted()
    core.edge_sends(Depart(admitted.session, True), 2)
    core.append(admitted.session, "a")
    assert len(core.kafka_writes()) == 1


def test_an_expired_grant(core):
    admitted = core.admitted()
    core.now_ms += 306_000
    core.now += 306
    assert refused(core, admitted.session)
    assert (core.counted("open.expired"), core.counted("append.expired")) == (1, 1)
    core.edge_sends(Present(admitted.grant))
    assert core.counted("grant.expired") == 1


def test_more_sessions_than_a_link_may_have():
    core = Dialogue(limits=CoreLimits(link_sessions=2))
    core.edge_up()
    other = Dialogue()
    other.edge_up()
    grants = [other.admitted() for _ in range(3)]
    for one in grants:
        core.edge_sends(Present(one.grant))
    assert core.counted("grant.too_many") == 1
    assert core.admit().error.code == 50004


def test_more_channels_than_a_link_may_have():
    core = Dialogue(limits=CoreLimits(link_channels=2))
    core.edge_up()
    session = core.admitted().session
    for name in "abc":
        core.open(name, session)
    assert [getattr(frame, "error", None) and frame.error.code for frame in core.sent()] == [None, None, 90021]


def test_a_request_number_names_one_channel_at_a_time(core):
    session = core.admitted().session
    core.edge_sends(Open(7, "shop", "a", session))
    core.answer_ends()
    core.answer(7)
    core.edge_sends(Open(7, "shop", "b", session))
    assert core.answer(7).error.code == 40000
    assert core.counted("open.number_in_use") == 1


def test_a_second_hello_ends_the_link(core):
    core.edge_sends(Hello(1, 1, Lane.LIVE, "eu", "e1", "boot-1"))
    assert [close.link for close in core.take(LinkClose)] == [1]
    core.edge_sends(Renew(1, "x"))
    assert core.sent() == []


@pytest.mark.parametrize("channel", ["", ":a", "[nonsense]a", "a\nb", "x" * 5000, "[meta"])
def test_names_that_are_no_channel(core, channel):
    session = core.admitted().session
    assert core.answer(core.open(channel, session)).error.code == 40010
    assert core.answer(core.append(session, channel)).error.code == 40010
    assert (core.counted("open.40010"), core.counted("append.40010")) == (1, 1)


@pytest.mark.parametrize("what", ["nonsense", "", calls.REQUEST_TOKEN, calls.CREATE_APP, calls.DELETE_APP])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"body":1}', b'{"body":1,"key_name":"shop.all"}', b'{"app":"shop","basic":null}']
)
def test_calls_that_are_none(core, what, body):
    core.edge_sends(Fetch(5, "", what, body))
    core.turns()
    assert 400 <= core.answer(5).error.status_code < 500


# --- whatever comes


TEXT = st.one_of(st.sampled_from(["", "a", "chat:x", "[meta]a", "shop.all", f"shop.all:{SECRET}", "s:1", "i:x", "*"]), st.text(max_size=20))
MAYBE = st.none() | TEXT
INTS = st.integers(-(2**63), 2**63 - 1)
REQ = st.integers(0, 20)
DATA = st.recursive(
    st.none() | st.booleans() | INTS | st.floats() | st.text(max_size=10) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.lists(
    st.builds(
        Message,
        id=MAYBE,
        name=MAYBE,
        data=DATA,
        encoding=MAYBE,
        client_id=MAYBE,
        connection_id=MAYBE,
        timestamp=st.none() | INTS,
        extras=st.none() | st.dictionaries(st.sampled_from(["headers", "ephemeral", "push", "x"]), DATA, max_size=3),
        action=INTS,
        serial=MAYBE,
        version=st.none() | st.dictionaries(TEXT, DATA, max_size=2),
    ),
    max_size=4,
)


def frames(sessions: list[str], grants: list[bytes], tokens: list[str]) -> st.SearchStrategy[ToCore]:
    session = st.sampled_from(sessions) | TEXT
    serials = st.builds(lambda p, o: Serial(STREAM.id, p, o).text, st.integers(0, 5), st.integers(-1, 50)) | TEXT
    mangled = st.sampled_from(grants).flatmap(lambda g: st.integers(0, len(g) - 1).map(lambda n: g[:n] + bytes([g[n] ^ 1]) + g[n + 1 :]))
    return st.one_of(
        st.builds(Credit, INTS),
        st.builds(
            Admit,
            REQ,
            st.sampled_from(tokens) | MAYBE,
            st.booleans(),
            st.booleans(),
            st.booleans(),
            INTS,
            MAYBE,
            MAYBE,
            MAYBE,
            session | st.just(""),
        ),
        st.builds(Present, st.sampled_from(grants) | mangled | st.binary(max_size=50)),
        st.builds(Renew, REQ, session),
        st.builds(Open, REQ, st.just("shop") | TEXT, TEXT, session, st.none() | serials),
        st.builds(Shut, REQ),
        st.builds(Append, REQ, session, TEXT, TEXT, st.booleans(), MESSAGES, st.booleans(), MAYBE),
        st.builds(Fetch, REQ, session, st.sampled_from(sorted(calls.CALLS)) | TEXT, st.binary(max_size=40)),
        st.builds(Depart, session, st.booleans()),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_frame_makes_a_core_raise_and_every_request_has_at_most_one_answer(data):
    core = Dialogue(sandbox=True, limits=CoreLimits(replay_turn_bytes=50, link_channels=5, link_sessions=5, link_appends=5))
    core.edge_up(1)
    core.edge_up(2, OTHER_EDGE, "boot-2")
    admitted = [core.admitted(), core.admitted(token("shop.chat")), core.admitted(link=2)]
    core.sent(1), core.sent(2)
    grants = [one.grant for one in admitted]
    script = frames([one.session for one in admitted], grants, [token(), token(secret="f" * 32), f"shop.all:{SECRET}", f"new.x:{SECRET}"])
    for _ in range(data.draw(st.integers(5, 25))):
        match data.draw(st.integers(0, 8)):
            case 0:
                core.tick(data.draw(st.sampled_from([0.0, 0.3, 5.0, 100.0])))
            case 1:
                core.kafka_round()
            case 2:
                core.happens(EndOffset(data.draw(REQ), data.draw(st.integers(-1, 5)), data.draw(st.none() | REQ)))
            case 3:
                core.happens(Reported(data.draw(REQ), data.draw(st.integers(0, 3)), data.draw(st.none() | REQ)))
                core.happens(Overfull(data.draw(REQ), "x"))
            case 4:
                core.happens(Tailed([LogRecord("other", 9, 3, 0, b"k", b"v", 0, "id")]))
            case _:
                core.edge_sends(data.draw(script), data.draw(st.sampled_from([1, 1, 1, 2, 9])))
    core.turns()
    core.tick(200)


WIRE = msgspec.msgpack.Decoder(ToCore)


@settings(max_examples=300, deadline=None)
@given(st.lists(DATA, max_size=8), st.sampled_from([1, 10, 11, 12, 13, 14, 15, 16, 17, 18]))
def test_whatever_decodes_as_a_frame_is_survived(fields, tag):
    try:
        frame = WIRE.decode(msgspec.msgpack.encode([tag, *fields]))
    except msgspec.ValidationError:
        return
    core = Dialogue()
    core.edge_up()
    core.happens(EdgeFrame(1, frame))
    core.happens(Tick())
    assert isinstance(core.node, CoreNode)
