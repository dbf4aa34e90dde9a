"""One request, many channels, across two edges and two cores."""

from __future__ import annotations

from typing import Any

from tests.journeys.real import RealWorld
from tests.journeys.world import World

ATTACH, ATTACHED, MESSAGE, PRESENCE, ACK = 10, 11, 15, 14, 1
Anything = World | RealWorld


def reader(world: Anything, channel: str, *, edge: int = 1) -> Any:
    client = world.client(edge=edge)
    client.gets(4)
    client.sends(action=ATTACH, channel=channel, flags=1 << 18)
    client.gets(ATTACHED, channel=channel)
    return client


def test_a_connectors_batch_reaches_every_channel_in_its_order(world: Anything) -> None:
    readers = {name: reader(world, name) for name in ("batch-a", "batch b/%")}
    specs: list[dict[str, Any]] = [
        {"channels": [name], "messages": [{"data": f"{number}", "extras": {"kafka": {"key": "k"}}}]}
        for number, name in enumerate(["batch-a", "batch b/%", ":no"] * 30)
    ]
    status, body = world.rest("POST", "/messages?newBatchResponse=true", specs)
    assert (status, len(body)) == (201, 90)
    assert [each["failureCount"] for each in body] == [0, 0, 1] * 30
    assert {each["results"][0]["error"]["code"] for each in body[2::3]} == {40010}
    for at, client in enumerate(readers.values()):
        for number in range(30):
            frame = client.gets(MESSAGE)
            (message,) = frame["messages"]
            assert (message["data"], message["extras"]) == (f"{number * 3 + at}", {"kafka": {"key": "k"}})
            assert body[number * 3 + at]["results"][0]["serials"] == [message["serial"]]
        client.gets_nothing()
    status, history = world.rest("GET", "/channels/batch-a/messages?direction=forwards&limit=3", edge=1)
    assert (status, [message["data"] for message in history]) == (200, ["0", "3", "6"])


def test_what_the_key_does_not_permit_fails_alone_in_either_form(world: Anything) -> None:
    token = world.token(capability={"batch-yes": ["publish", "history"]})
    body = {"channels": ["batch-yes", "batch-no"], "messages": {"data": "x"}}
    status, answer = world.rest("POST", "/messages", [body], credential=token)
    assert (status, answer[0]["successCount"], answer[0]["failureCount"]) == (201, 1, 1)
    status, answer = world.rest("POST", "/messages?v=2", body, credential=token)
    assert (status, answer["error"]["code"]) == (400, 40020)
    first, second = answer["batchResponse"]
    assert (first.keys(), second["error"]["code"]) == ({"channel", "messageId"}, 40160)
    assert len(world.rest("GET", "/channels/batch-yes/messages")[1]) == 2


def test_a_batch_outlives_a_core(world: Anything) -> None:
    if world.real:
        return
    client = reader(world, "batch-core")
    specs = [{"channels": ["batch-core", f"batch-core-{number}"], "messages": {"data": f"{number}"}} for number in range(40)]
    world.log.frozen = True
    call = world.posts("POST", "/messages", specs)
    world.kill_core(0)
    world.thaw()
    status, answer = world.answered(call)
    assert (status, sum(each["failureCount"] for each in answer)) == (201, 0)
    assert [client.gets(MESSAGE)["messages"][0]["data"] for _ in range(40)] == [f"{number}" for number in range(40)]
    client.gets_nothing()


def test_presence_of_several_channels_includes_what_was_acknowledged(world: Anything) -> None:
    client = world.client(edge=1, clientId="ann")
    client.gets(4)
    for serial, channel in enumerate(["batch-in", "batch-hidden"]):
        client.sends(action=ATTACH, channel=channel)
        client.gets(ATTACHED)
        client.sends(action=PRESENCE, msgSerial=serial, channel=channel, presence=[{"action": 2}])
        client.gets(PRESENCE)
        client.gets(ACK)
    token = world.token(capability={"batch-in": ["presence"], "batch-hidden": ["publish"], "batch-empty": ["subscribe"]})
    status, body = world.rest("GET", "/presence?channels=batch-in,batch-hidden,batch-empty", credential=token)
    assert (status, body["successCount"], body["failureCount"]) == (200, 2, 1)
    inside, hidden, empty = body["results"]
    assert [(member["clientId"], member["action"]) for member in inside["presence"]] == [("ann", 1)]
    assert (hidden["channel"], hidden["error"]["code"]) == ("batch-hidden", 40160)
    assert empty == {"channel": "batch-empty", "presence": []}
