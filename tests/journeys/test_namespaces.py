"""What the properties of a namespace do to who uses its channels, from the change on. Source: Ably protocol docs, 11.9."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from core.events import ConfigRead
from edge.events import ClientOpened
from relay.link.frames import Open
from tests.journeys.world import APP, World

CONNECTED, DISCONNECTED, ERROR, ATTACH, ATTACHED, MESSAGE, NACK = 4, 6, 9, 10, 11, 15, 2


@pytest.fixture
def world() -> World:
    return World(edges=2, cores=2)


def namespace(world: World, name: str, **properties: Any) -> None:
    """As the Control API writes it, read by every core."""
    record = f"namespace:{APP}:{name}", json.dumps({"v": 1, "id": name, **properties}).encode()
    world.log.config.append(record)
    for core in world.cores:
        core.inbox.append(ConfigRead(*record))
    world.run()


def on(world: World, channel: str, **options: Any) -> Any:
    client = world.client(**options)
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    return client


def test_only_identified_clients_use_an_authenticated_namespace(world):
    namespace(world, "private", authenticated=True)
    nobody, bob = world.token(), world.token(client_id="bob")
    for channel in ("private", "private:1", "[?rewind=1]private:1"):
        client = on(world, channel, access_token=nobody)
        assert client.gets(ERROR, channel=channel)["error"] | {"message": ""} == {
            "code": 40161,
            "statusCode": 401,
            "message": "",
            "href": "https://help.ably.io/error/40161",
        }
        client.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"data": "x"}])
        assert client.gets(NACK)["error"]["code"] in (40161, 40010)
    on(world, "privately", access_token=nobody).gets(ATTACHED)
    identified = on(world, "private:1", access_token=bob)
    identified.gets(ATTACHED)
    on(world, "private:1").gets(ATTACHED)  # an API key may take any clientId
    for method, path, body in (
        ("POST", "/channels/private:1/messages", {"data": "x"}),
        ("GET", "/channels/private:1/messages", None),
        ("GET", "/channels/private:1/presence", None),
        ("GET", "/channels/private:1", None),
    ):
        status, answer = world.rest(method, path, body, credential=nobody)
        assert (status, answer["error"]["code"]) == (401, 40161), (method, path)
        assert world.rest(method, path, body, credential=bob)[0] in (200, 201)
    assert identified.gets(MESSAGE)["messages"][0]["clientId"] == "bob"


def test_a_namespace_that_is_closed_sends_away_who_could_use_it_and_nobody_else(world):
    nobody = on(world, "private:1", access_token=world.token())
    first = nobody.gets(ATTACHED)
    bob = on(world, "private:1", access_token=world.token(client_id="bob"), edge=1)
    reader = on(world, "news:1", access_token=world.token(capability={"news:*": ["subscribe"]}))
    bob.gets(ATTACHED)
    reader.gets(ATTACHED)
    namespace(world, "private", authenticated=True)
    gone = nobody.gets(DISCONNECTED)
    assert gone["error"]["code"] == 80003, "a code on which SDKs come back at once, and resume"
    bob.gets_nothing()
    reader.gets_nothing()
    back = world.client(access_token=world.token(), edge=1)
    back.gets(CONNECTED)
    back.sends(action=ATTACH, channel="private:1", channelSerial=first["channelSerial"])
    assert back.gets(ERROR, channel="private:1")["error"]["code"] == 40161
    back.sends(action=ATTACH, channel="open")
    back.gets(ATTACHED, channel="open")
    assert world.rest("POST", "/channels/private:1/messages", {"data": "x"}, credential=world.token())[0] == 401
    namespace(world, "private", authenticated=False)
    back.gets_nothing()
    on(world, "private:1", access_token=world.token()).gets(ATTACHED)


def test_rest_requests_under_a_remembered_grant_are_refused_from_the_change_on(world):
    nobody = world.token()
    assert world.rest("POST", "/channels/private:1/messages", {"data": "x"}, credential=nobody)[0] == 201
    namespace(world, "private", authenticated=True)
    status, answer = world.rest("POST", "/channels/private:1/messages", {"data": "x"}, credential=nobody)
    assert (status, answer["error"]["code"]) == (401, 40161)


def test_a_core_does_not_take_the_edges_word_for_it(world):
    """An edge that forgot about the namespace opens the channel in the name of a client without a clientId."""
    namespace(world, "private", authenticated=True)
    client = world.client(access_token=world.token())
    session = client.gets(CONNECTED)["connectionId"]
    connection = next(one for edge in world.edges for one in edge.node._desk.connections.values() if one.session.id == session)
    connection.session.capability = connection.session.capability.barring(())
    client.sends(action=ATTACH, channel="private:1")
    assert any(isinstance(frame, Open) and frame.channel == "private:1" for frame in world.sent_to_cores)
    assert client.gets(ERROR, channel="private:1")["error"]["code"] == 40161
    client.sends(action=MESSAGE, channel="private:1", msgSerial=0, messages=[{"data": "x"}])
    assert client.gets(NACK)["error"]["code"] == 40161


def test_a_tls_only_namespace_is_closed_to_clients_without_tls(world):
    namespace(world, "safe", tlsOnly=True, authenticated=True)
    plain = world.client(access_token=world.token(client_id="bob"))
    plain.gets(CONNECTED)
    opened: list[ClientOpened] = []
    edge = world.edges[0]
    handle = edge.node.handle

    def without_tls(event: Any, now: float, now_ms: int) -> Any:
        if isinstance(event, ClientOpened):
            opened.append(event)
            event = dataclasses.replace(event, tls=False)
        return handle(event, now, now_ms)

    edge.node.handle = without_tls  # type: ignore[method-assign]
    client = on(world, "safe:1", access_token=world.token(client_id="bob"))
    assert opened
    error = client.gets(ERROR, channel="safe:1")["error"]
    assert (error["code"], error["statusCode"]) == (40311, 403)
    client.sends(action=ATTACH, channel="open")
    client.gets(ATTACHED)
    plain.sends(action=ATTACH, channel="safe:1")
    plain.gets(ATTACHED)


def test_what_is_said_of_a_namespace_outlives_the_cores(world):
    namespace(world, "private", authenticated=True)
    world.kill_core(0)
    world.start_core(0)
    world.kill_core(1)
    assert on(world, "private:1", access_token=world.token()).gets(ERROR)["error"]["code"] == 40161
