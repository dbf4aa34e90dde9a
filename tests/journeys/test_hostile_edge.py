"""A captured edge can act as the clients that connected through it, and no further: whatever else it asks, the core refuses and counts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.log import LogRecord
from relay.link.codec import encode
from relay.link.frames import (
    BULK,
    Admit,
    Admitted,
    Append,
    Counted,
    Counts,
    Credit,
    Depart,
    Fetch,
    Hello,
    Lane,
    Lost,
    Open,
    Opened,
    Present,
    Record,
    Renew,
    Shut,
    ToCore,
    Watch,
)
from relay.model.channel import CHANNEL_LIFECYCLE, META_STATS, log_key
from relay.model.message import Kind, Message, RecordBody
from relay.model.serials import Serial
from relay.model.stats import GAUGES, SIZE, UNITS, interval_id
from tests.journeys import world as fake
from tests.journeys.forged import Forge, Forged, WireForge, forge_of
from tests.journeys.real import RealWorld
from tests.journeys.test_journeys import ACK, CONNECTED, MESSAGE, attached
from tests.journeys.world import World, token

AnyWorld = World | RealWorld


@pytest.fixture
def forge(world: AnyWorld) -> Iterator[Forge]:
    made = forge_of(world)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def forged(forge: Forge) -> Forged:
    return forge.edge()


@pytest.fixture
def channel() -> str:
    """One that honest clients use and no client of the forged edge may."""
    return f"private:{secrets.token_hex(4)}"


def own(world: AnyWorld, **claims: Any) -> str:
    """The credential of a client that connected through the forged edge."""
    return world.token(**{"capability": {"own:*": ["*"]}, **claims})


def publish(world: AnyWorld, channel: str, data: str = "secret") -> None:
    client = world.client()
    client.gets(CONNECTED)
    client.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"data": data}])
    client.gets(ACK)


def records(forged: Forged) -> list[Record]:
    return [frame for frame in forged.learns() if isinstance(frame, Record)]


def test_it_may_act_as_its_own_clients(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    with forge.counts():
        session = forged.admitted(own(world)).session
        assert isinstance(forged.asks(forged.open("own:1", session)), Opened)
        forged.publishes(session, "own:1", publish_id=f"c:{session}:0")
        assert len(records(forged)) == 1


def test_a_channel_outside_its_grants(world: AnyWorld, forge: Forge, forged: Forged, channel: str) -> None:
    honest = attached(world, channel)
    session = forged.admitted(own(world)).session
    with forge.counts(open__capability=1, append__capability=1):
        assert forged.refused(forged.open(channel, session)) == 40160
        assert forged.refused(forged.append(session, channel)) == 40160
    publish(world, channel)
    assert records(forged) == []
    assert honest.gets(MESSAGE)["messages"][0]["data"] == "secret"
    honest.gets_nothing()


def test_a_channel_of_another_app(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    session = forged.admitted(own(world, capability={"*": ["*"]})).session
    with forge.counts(open__wrong_app=1):
        assert forged.refused(forged.open("own:1", session, app="bank")) == 40160


def test_a_channel_without_a_witness(world: AnyWorld, forge: Forge, forged: Forged, channel: str) -> None:
    elsewhere = forge.edge(1).admitted(own(world, capability={"*": ["*"]})).session
    honest = world.client()
    connection = honest.gets(CONNECTED)["connectionId"]
    with forge.counts(open__no_witness=4):
        for witness in ("", "nobodyhere", elsewhere, connection):
            assert forged.refused(forged.open(channel, witness)) == 40160
    publish(world, channel)
    assert records(forged) == []


@pytest.mark.parametrize(("edge", "boot"), [(1, "forged"), (0, "restarted")], ids=["another edge's", "of before a restart"])
def test_a_grant_that_is_not_its_own(world: AnyWorld, forge: Forge, forged: Forged, edge: int, boot: str) -> None:
    admitted = forged.admitted(own(world))
    thief = forge.edge(edge, boot)
    with forge.counts(grant__wrong_edge=1, open__no_witness=1, append__no_grant=1, renew__no_grant=1, admit__no_grant=1):
        thief.presents(admitted.grant)
        assert thief.refused(thief.open("own:1", admitted.session)) == 40160
        assert thief.refused(thief.append(admitted.session, "own:1")) == 40101
        assert thief.refused(thief.renew(admitted.session)) == 40101
        assert thief.refused(thief.admit(own(world), session=admitted.session)) == 40101


def test_a_grant_that_it_has_made_or_changed(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    admitted = forged.admitted(own(world))
    forged.departs(admitted.session)
    with forge.counts(grant__bad_mac=2, grant__malformed=2, append__no_grant=1):
        forged.presents(admitted.grant.replace(b"own:*", b"*:*:*"))
        forged.presents(admitted.grant[:-1] + bytes([admitted.grant[-1] ^ 1]))
        forged.presents(b"")
        forged.presents(b"\xff" + admitted.grant[1:40])
        assert forged.refused(forged.append(admitted.session, "own:1")) == 40101


def test_an_old_incarnation(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    """The connection was resumed through another edge, under a grant of the next incarnation."""
    admitted, other = forged.admitted(own(world)), forge.edge(1)
    other.presents(forged.reworked(admitted, edge=other.identity, incarnation=1))
    other.publishes(admitted.session, "own:1")
    with forge.counts(grant__old_incarnation=1, open__old_incarnation=1, append__old_incarnation=1, renew__old_incarnation=1):
        forged.presents(admitted.grant)
        assert forged.refused(forged.open("own:1", admitted.session)) == 40160
        assert forged.refused(forged.append(admitted.session, "own:1")) == 80016
        assert forged.refused(forged.renew(admitted.session)) == 80016
    other.publishes(admitted.session, "own:1")


def test_a_departed_session(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    admitted, other = forged.admitted(own(world)), forge.edge(1)
    forged.departs(admitted.session)
    with forge.counts(grant__old_incarnation=2, open__no_witness=1, append__no_grant=2):
        forged.presents(admitted.grant)
        assert forged.refused(forged.open("own:1", admitted.session)) == 40160
        assert forged.refused(forged.append(admitted.session, "own:1")) == 40101
        other.presents(forged.reworked(admitted, edge=other.identity))
        assert other.refused(other.append(admitted.session, "own:1")) == 40101


def test_it_cannot_end_a_session_of_another_edge(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    other = forge.edge(1)
    session = other.admitted(own(world)).session
    with forge.counts():
        forged.departs(session)
        other.publishes(session, "own:1")


def test_an_expired_grant(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    admitted = forged.admitted(own(world))
    forged.departs(admitted.session)
    with forge.counts(grant__expired=2, open__no_witness=1, append__no_grant=1):
        forged.presents(forged.reworked(admitted, session="longexpird", expires=world.now_ms - 6_000))
        forged.presents(forged.reworked(admitted, session="longexpird", token_expires=world.now_ms - 6_000))
        assert forged.refused(forged.open("own:1", "longexpird")) == 40160
        assert forged.refused(forged.append("longexpird", "own:1")) == 40101


def test_rights_that_end_take_their_channels_with_them(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    leaver = forged.admitted(own(world, capability={"own:leaver": ["*"]})).session
    expires = forged.admitted(own(world, capability={"own:expires": ["*"]}, ttl_s=2)).session
    opens = [forged.open("own:leaver", leaver), forged.open("own:expires", expires)]
    assert all(isinstance(forged.asks(frame), Opened) for frame in opens)
    with forge.counts(open__witness_gone=2):
        forged.departs(leaver)
        world.wait(20)  # the token's two seconds, the leeway of its expiry, and the grace of a channel without a witness
    for session in (leaver, expires):
        assert forged.refused(forged.append(session, "own:1")) == 40101
        assert forged.refused(forged.renew(session)) == 40101
    publish(world, "own:leaver")
    publish(world, "own:expires")
    lost = [(frame.ref, frame.error.code) for frame in forged.learns() if isinstance(frame, Lost)]
    assert sorted(lost) == [(frame.req, 40160) for frame in opens]
    assert records(forged) == []


def test_an_expired_and_a_forged_credential(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    name = forge.world.product.key if isinstance(forge.world, RealWorld) else fake.KEY
    with forge.counts(admit__40142=1, admit__40144=1):
        assert forged.refused(forged.admit(own(world, ttl_s=-100))) == 40142
        assert forged.refused(forged.admit(token(world.now_ms, key=f"{name.partition(':')[0]}:{'x' * 32}"))) == 40144


def test_it_publishes_under_no_connection_but_its_clients_own(world: AnyWorld, forge: Forge, forged: Forged) -> None:
    honest = world.client(clientId="alice")
    connection = honest.gets(CONNECTED)["connectionId"]
    session = forged.admitted(own(world, client_id="mallory")).session
    rest = forged.admitted(own(world, client_id="mallory"), realtime=False).session
    listener = attached(world, "own:1")
    with forge.counts(append__bad_id=5, append__40006=1, append__40012=1, append__connection_key=2, append__no_grant=1):
        for publish_id in (f"c:{connection}:0", f"c:{session}", "m:topic:0:1", "i:squatted", "x"):
            assert forged.refused(forged.append(session, "own:1", publish_id)) == 40031
        assert forged.refused(forged.append(session, "own:1", messages=[Message(connection_id=connection)])) == 40006
        assert forged.refused(forged.append(session, "own:1", messages=[Message(client_id="alice")])) == 40012
        assert forged.refused(forged.append(session, "own:1", connection_key=f"{connection}!0.forged")) == 40006
        assert forged.refused(forged.append(rest, "own:1", connection_key=f"{connection}!0.forged")) == 40006
        assert forged.refused(forged.append(connection, "own:1")) == 40101
    publish(world, "own:1", "honest")
    assert listener.gets(MESSAGE)["messages"][0]["data"] == "honest"


def test_nobody_writes_on_a_metachannel_whatever_its_rights(world: AnyWorld, forge: Forge) -> None:
    forged = forge.edge()
    session = forged.admitted(world.token(capability={"[*]*": ["*"]}, client_id="mallory")).session
    for channel in (CHANNEL_LIFECYCLE, f"[?rewind=1]{CHANNEL_LIFECYCLE}", "[meta]x", "[filter=bmFtZQ==]own:1"):
        assert forged.refused(forged.append(session, channel)) == 40160
        assert forged.refused(forged.append(session, channel, "l:aaaabbbb-0000-0000000000000001")) == 40160
    assert forged.refused(forged.append(session, "own:1", "l:aaaabbbb-0000-0000000000000001")) == 40031


# --- whatever comes ----------------------------------------------------------------------------------------------------------------------

PRIVATE, OWN = "private:1", "own:1"
_channels = st.sampled_from(
    [
        *[OWN] * 8,
        *[PRIVATE] * 4,
        f"[?rewind=1]{PRIVATE}",
        "[meta]x",
        CHANNEL_LIFECYCLE,
        "",
        f"[?delta=x]{OWN}",
        f"[filter=bmFtZQ==]{OWN}",
        "own:*",
        "*",
    ]
)


def _frames(
    sessions: list[str], honest: list[str], grants: list[bytes], tokens: list[str], serials: list[str]
) -> st.SearchStrategy[ToCore]:
    session = st.sampled_from([*sessions * 4, *honest, "", "nobodyhere"])
    number = st.integers(1, 12)
    ids = st.sampled_from([*(f"c:{one}:{n}" for one in (*sessions, *honest) for n in range(3)), "s:a:0", "s:b:0", "i:x", "m:t:0:0", ""])
    odd = st.builds(
        Message,
        data=st.sampled_from(["forged", b"forged", 1]),
        id=st.sampled_from([None, "x"]),
        client_id=st.sampled_from([None, "alice", "mallory", "*"]),
        connection_id=st.sampled_from([None, *sessions, *honest]),
        extras=st.sampled_from([None, {"ephemeral": True}, {"headers": 1}]),
    )
    messages = st.just([Message(data="forged")]) | st.lists(odd, min_size=1, max_size=2)
    serial = st.sampled_from([None, *serials, "nonsense"])
    counts = st.lists(st.integers(-1, 9), min_size=7, max_size=7)
    interval = st.sampled_from([interval_id(fake.START_MS, unit) for unit in UNITS] + ["2020-01", "nonsense"])
    numbers = st.lists(st.integers(0, 9), max_size=SIZE + 1) | st.just([-1]) | st.just([1 << 60])
    intervals = st.lists(st.tuples(interval, numbers), max_size=2)
    return st.one_of(
        st.builds(Append, number, session, _channels, ids, st.booleans(), messages, st.booleans(), st.none()),
        st.builds(Present, st.sampled_from([*grants, b"", b"\2xx" + bytes(40)])),
        st.builds(Open, number, st.sampled_from([fake.APP, fake.APP, "bank"]), _channels, session, serial),
        st.builds(Depart, session, st.booleans()),
        st.builds(Renew, number, session),
        st.builds(Shut, number),
        st.builds(Counts, number, st.sampled_from([fake.APP, "bank"]), _channels, counts, session),
        st.builds(Counted, st.sampled_from([fake.APP, "bank"]), session, intervals, intervals),
        st.builds(Watch, number, st.booleans(), session),
        st.builds(
            Admit, number, st.sampled_from(tokens), st.just(False), st.booleans(), st.just(True), st.integers(0, 9), st.none(),
            st.none(), st.none(), st.sampled_from(["", *sessions, *honest]),
        ),
        st.builds(Fetch, number, session, st.sampled_from(["nonsense", "request_token"]), st.binary(max_size=8)),
    )  # fmt: skip


def _records_of(world: World, channel: str) -> list[LogRecord]:
    key = log_key(fake.APP, channel)
    return [record for partition in world.log.partitions for record in partition if record.key == key and record.kind == Kind.MESSAGE]


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_that_it_sends_reaches_beyond_its_clients_rights(data: st.DataObject) -> None:
    """It reads no record of a channel that its clients may not read, writes none there, and none in anybody else's name."""
    world = World(edges=2, cores=2, seed=data.draw(st.integers(0, 9)))
    forge = WireForge(world)
    forged, elsewhere = forge.edge(0), forge.edge(1)
    clients = [forged.admitted(own(world, client_id="mallory")) for _ in range(2)]
    departed = forged.admitted(own(world))
    forged.departs(departed.session)
    foreign = elsewhere.admitted(world.token(client_id="alice"))
    alice, reader = world.client(clientId="alice"), attached(world, PRIVATE, edge=1)
    honest = [foreign.session, alice.gets(CONNECTED)["connectionId"]]
    grants = [foreign.grant, departed.grant, clients[0].grant, forged.reworked(departed, session="longexpird", expires=1)]
    tokens = [own(world, client_id="mallory"), own(world, client_id="alice"), own(world, ttl_s=-100)]
    sent = 0

    def publish_honestly() -> None:
        nonlocal sent
        alice.sends(action=MESSAGE, channel=PRIVATE, msgSerial=sent, messages=[{"data": f"secret-{sent}"}])
        alice.gets(ACK)
        sent += 1

    publish_honestly()
    (first,) = _records_of(world, PRIVATE)
    serials = [Serial(first.stream, first.partition, offset).text for offset in (-1, 0, 5)]
    script = _frames([client.session for client in clients], honest, grants, tokens, serials)
    for _ in range(data.draw(st.integers(3, 12))):
        match data.draw(st.integers(0, 9)):
            case 0:
                publish_honestly()
            case 1:
                world.wait(data.draw(st.sampled_from([1.0, 11.0, 70.0])))
            case _:
                # Several at once, on both lanes: the wire's chance decides which lane goes first.
                for frame in data.draw(st.lists(script, min_size=1, max_size=6)):
                    forged.sends_bytes(encode([frame]), Lane.BULK if type(frame) in BULK else Lane.LIVE)
                world.run()
    publish_honestly()

    came = forged.learns()
    assert all(b"secret-" not in frame.body for frame in came if isinstance(frame, Record))
    assert [reader.gets(MESSAGE)["messages"][0]["data"] for _ in range(sent)] == [f"secret-{n}" for n in range(sent)]
    reader.gets_nothing()
    assert len(_records_of(world, PRIVATE)) == sent
    counted = {key.split(":", 2)[2] for key, value in world.log.sessions if key.startswith(f"counts:{forged.boot}") and value is not None}
    assert all(channel.startswith(f"{fake.APP}:own:") for channel in counted), counted
    for key, value in world.log.sessions:
        if key.startswith("stats:") and value is not None:
            _, app, process, *_ = key.split(":")
            assert app == fake.APP
            if process == forged.boot:
                assert all(not any(numbers[: len(GAUGES)]) for numbers in msgspec.json.decode(value)["intervals"].values())
    mine = {frame.session for frame in (*clients, *came) if isinstance(frame, Admitted)}
    written = [record for partition in world.log.partitions for record in partition if record.key != log_key(fake.APP, PRIVATE)]
    for record in written:
        if record.key in (log_key(fake.APP, CHANNEL_LIFECYCLE), log_key(fake.APP, META_STATS)):
            assert record.id.startswith(("l:", "u:"))
            continue  # the cores' own word, too
        assert record.key.startswith(log_key(fake.APP, "own:"))
        if record.kind == Kind.LIFECYCLE:
            continue  # the cores' own word
        body = msgspec.msgpack.decode(record.value, type=RecordBody)
        assert body.connection_id is None or body.connection_id in mine
        if body.connection_id in (client.session for client in clients):
            assert {message.client_id for message in body.messages} == {"mallory"}
        assert record.id[:2] in ("s:", "i:") or record.id.split(":")[1] in mine


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_frames_in_any_order_cost_an_honest_client_nothing(data: st.DataObject) -> None:
    """Also those that the link below would not let through to the node: a second hello, a credit."""
    world = World(edges=1, cores=1)
    forged = WireForge(world).edge()
    session = forged.admitted(own(world)).session
    reader, writer = attached(world, PRIVATE), world.client()
    writer.gets(CONNECTED)
    odd = st.one_of(
        st.builds(Credit, st.integers(-5, 2**40)),
        st.just(Hello(1, 1, Lane.LIVE, "eu", "edge-1", "again")),
        _frames([session], [], [b"x"], ["not-a-token"], []),
    )
    for serial in range(3):
        for frame in data.draw(st.lists(odd, max_size=8)):
            if not forged.lost:
                forged.sends_bytes(encode([frame]), data.draw(st.sampled_from(Lane)))
        writer.sends(action=MESSAGE, channel=PRIVATE, msgSerial=serial, messages=[{"data": str(serial)}])
        writer.gets(ACK, msgSerial=serial)
        assert reader.gets(MESSAGE)["messages"][0]["data"] == str(serial)
