"""Whole journeys, client to Kafka and back, each told once and run in both worlds."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

import pytest

from tests.journeys.real import RealWorld
from tests.journeys.world import World

AnyWorld = World | RealWorld
CONNECTED, DISCONNECTED, CLOSE, CLOSED, ERROR = 4, 6, 7, 8, 9
ATTACH, ATTACHED, DETACH, DETACHED, PRESENCE, MESSAGE, AUTH = 10, 11, 12, 13, 14, 15, 17
ACK, NACK = 1, 2
DEFAULT_MODES = 65536 | 131072 | 262144 | 524288 | 2097152


@pytest.fixture
def channel() -> str:
    return f"journey:{secrets.token_hex(4)}"


def attached(world: AnyWorld, channel: str, **options: Any) -> Any:
    client = world.client(**options)
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED, channel=channel)
    return client


def test_rtn4_first_frame_is_connected_with_its_details(world: AnyWorld) -> None:
    frame = world.client(clientId="bob").gets(CONNECTED)
    details = frame["connectionDetails"]
    assert details["clientId"] == "bob"
    assert details["connectionKey"].startswith(frame["connectionId"])
    assert details["maxMessageSize"] == 65536
    assert (details["maxIdleInterval"], details["connectionStateTtl"]) == (15000, 120000)
    assert "error" not in frame
    assert ":" not in frame["connectionId"]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "msgpack"])
def test_rtl7_publish_is_acknowledged_and_reaches_both_formats_on_the_other_edge(world: AnyWorld, channel: str, binary: bool) -> None:
    text, packed = attached(world, channel, edge=1), attached(world, channel, edge=1, binary=True)
    publisher = world.client(edge=0, binary=binary)
    identity = publisher.gets(CONNECTED)["connectionId"]
    raw = bytes(range(256))
    data = raw if binary else base64.b64encode(raw).decode()
    encoding = {} if binary else {"encoding": "base64"}
    publisher.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"name": "a", "data": data, **encoding}, {"data": ""}])
    ack = publisher.gets(ACK, msgSerial=0, count=1)
    (serials,) = (entry["serials"] for entry in ack["res"])
    assert len(serials) == 2
    as_json, as_msgpack = text.gets(MESSAGE, channel=channel), packed.gets(MESSAGE, channel=channel)
    assert base64.b64decode(as_json["messages"][0]["data"]) == as_msgpack["messages"][0]["data"] == raw
    assert as_json["messages"][0]["encoding"] == "base64"
    assert "encoding" not in as_msgpack["messages"][0]
    for frame in (as_json, as_msgpack):
        assert (frame["id"], frame["connectionId"]) == (f"{identity}:0", identity)
        assert [m["serial"] for m in frame["messages"]] == serials
        assert frame["messages"][1]["data"] == ""
        assert "name" not in frame["messages"][1]


def test_rtl4_attached_carries_the_granted_modes_and_only_known_params(world: AnyWorld, channel: str) -> None:
    token = world.token(capability={channel: ["publish", "subscribe"]})
    client = world.client(access_token=token)
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel, params={"modes": "subscribe", "nonsense": "1"}, flags=131072)
    frame = client.gets(ATTACHED)
    assert frame["flags"] & 0x36F0000 == 262144
    assert frame["params"] == {"modes": "subscribe"}
    everything = attached(world, channel)
    everything.sends(action=ATTACH, channel=channel)
    assert everything.gets(ATTACHED)["flags"] & 0x36F0000 == DEFAULT_MODES


def test_tr4_echo_can_be_switched_off(world: AnyWorld, channel: str) -> None:
    quiet, loud = attached(world, channel, echo="false"), attached(world, channel)
    quiet.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"data": "x"}])
    quiet.gets(ACK)
    loud.gets(MESSAGE)
    quiet.gets_nothing()


def test_rtn7a_publish_beyond_the_capability_is_nacked_and_the_connection_carries_on(world: AnyWorld) -> None:
    client = world.client(access_token=world.token(capability={"news:*": ["subscribe"], "chat:*": ["publish"]}))
    client.gets(CONNECTED)
    client.sends(action=MESSAGE, channel="news:rugby", msgSerial=0, messages=[{"data": "x"}])
    frame = client.gets(NACK, msgSerial=0, count=1)
    assert (frame["error"]["code"], frame["error"]["statusCode"]) == (40160, 401)
    client.sends(action=MESSAGE, channel="chat:1", msgSerial=1, messages=[{"data": "x"}])
    client.gets(ACK, msgSerial=1)
    client.sends(action=ATTACH, channel="other")
    assert client.gets(ERROR, channel="other")["error"]["code"] == 40160


def test_rtl6_answers_come_in_msgserial_order_whatever_the_channel(world: AnyWorld, channel: str) -> None:
    client = world.client()
    client.gets(CONNECTED)
    for serial in range(20):
        client.sends(
            action=MESSAGE,
            channel=f"{channel}:{serial % 7}",
            msgSerial=serial,
            messages=[{"data": serial}] if serial == 9 else [{"data": "x"}],
        )
    answered: list[tuple[int, int]] = []
    while len(answered) < 20:
        frame = client.gets(NACK) if len(answered) == 9 else client.gets(ACK)
        assert frame["msgSerial"] == len(answered)
        answered += [(frame["action"], serial) for serial in range(frame["msgSerial"], frame["msgSerial"] + frame["count"])]
        assert frame["action"] == NACK or len(frame["res"]) == frame["count"]
    assert [action for action, _ in answered].count(NACK) == 1  # data of type number is 40013


def test_rsa8_client_id_rules(world: AnyWorld, channel: str) -> None:
    bob = world.client(access_token=world.token(client_id="bob"))
    assert bob.gets(CONNECTED)["connectionDetails"]["clientId"] == "bob"
    bob.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"clientId": "alice"}])
    assert bob.gets(NACK)["error"]["code"] == 40012
    conflict = world.client(access_token=world.token(client_id="bob"), clientId="alice")
    assert conflict.gets(ERROR)["error"]["code"] == 40102
    anyone = world.client(access_token=world.token(client_id="*"))
    assert anyone.gets(CONNECTED)["connectionDetails"]["clientId"] == "*"


@pytest.mark.parametrize(
    ("credential", "code"),
    [
        ({"key": "nonsense"}, {40101, 40005}),
        ({"key": "shop.nothing:secret"}, {40101, 40400}),
        ({"access_token": "not-a-token"}, {40101}),
    ],
)
def test_rsa15_bad_credentials_end_in_an_error_frame_never_in_an_http_refusal(
    world: AnyWorld, credential: dict[str, str], code: set[int]
) -> None:
    client = world.client(**credential)
    frame = client.gets(ERROR)
    assert frame["error"]["code"] in code
    assert "channel" not in frame
    assert client.closed == 1000


def test_rtn11_close_is_answered_with_closed(world: AnyWorld) -> None:
    client = world.client()
    client.gets(CONNECTED)
    client.sends(action=CLOSE)
    client.gets(CLOSED)
    assert client.closed == 1000


def test_rtl3_channel_names_that_cannot_be_fail_the_channel_and_not_the_connection(world: AnyWorld) -> None:
    client = world.client()
    client.gets(CONNECTED)
    for name in (":hell", "", "[unknown]x", ":hell"):
        client.sends(action=ATTACH, channel=name)
        assert client.gets(ERROR, channel=name)["error"]["code"] == 40010
    client.sends(action=0, id="ping")
    client.gets(0, id="ping")


def test_rsl1_rest_publish_is_durable_delivered_and_idempotent(world: AnyWorld, channel: str) -> None:
    client = attached(world, channel)
    path = f"/channels/{channel.replace(':', '%3A')}/messages"
    answers = [world.rest("POST", path, {"id": "one", "data": {"a": 1}}, edge=n % 2) for n in range(3)]
    assert {status for status, _ in answers} == {201}
    assert len({json.dumps(body["serials"]) for _, body in answers}) == 1
    (message,) = client.gets(MESSAGE)["messages"]
    assert (message["id"], message["encoding"], json.loads(message["data"])) == ("one", "json", {"a": 1})
    assert "connectionId" not in message
    client.gets_nothing()


def test_rsa9_request_token_gives_a_token_that_connects_and_is_no_stronger(world: AnyWorld) -> None:
    name = (world.product.key if isinstance(world, RealWorld) else "shop.key:").partition(":")[0]
    status, details = world.rest(
        "POST", f"/keys/{name}/requestToken", {"keyName": name, "capability": '{"news:*":["subscribe"]}', "ttl": 60000}
    )
    assert status in (200, 201)
    assert details["expires"] - details["issued"] == 60000
    assert details["capability"] == '{"news:*":["subscribe"]}'
    client = world.client(access_token=details["token"])
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel="chat:1")
    assert client.gets(ERROR)["error"]["code"] == 40160


def test_rtc8_reauth_in_place_keeps_the_connection_and_takes_rights_away(world: AnyWorld, channel: str) -> None:
    client = world.client(access_token=world.token(capability={"*": ["*"]}, client_id="bob"))
    first = client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED)
    client.sends(action=AUTH, auth={"accessToken": world.token(capability={"other": ["subscribe"]}, client_id="bob")})
    again = client.gets(CONNECTED)
    assert (again["connectionId"], again["connectionDetails"]["connectionKey"]) == (
        first["connectionId"],
        first["connectionDetails"]["connectionKey"],
    )
    assert client.gets(ERROR, channel=channel)["error"]["code"] == 40160
    client.sends(action=AUTH, auth={"accessToken": world.token(client_id="alice")})
    assert client.gets(ERROR)["error"]["code"] == 40102


def test_rtn22a_token_that_expires_on_a_live_connection_disconnects(world: AnyWorld) -> None:
    client = world.client(access_token=world.token(ttl_s=3))
    client.gets(CONNECTED)
    world.wait(10)
    frame = client.gets(DISCONNECTED)
    assert (frame["error"]["code"], frame["error"]["statusCode"]) == (40142, 401)


def test_expired_and_forged_tokens(world: AnyWorld) -> None:
    expired = world.client(access_token=world.token(ttl_s=-100)).gets(ERROR)["error"]
    name = (world.product.key if isinstance(world, RealWorld) else "shop.key:").partition(":")[0]
    forged = world.client(access_token=world.token(key=f"{name}:{'x' * 32}")).gets(ERROR)["error"]
    assert (expired["code"], expired["statusCode"], forged["code"], forged["statusCode"]) == (40142, 401, 40144, 401)


@pytest.mark.parametrize("key", ["_____!ablyjs_test_fake-key____", "0123456789abcdef-99"])
def test_rtn15c_unusable_resume_keys_give_a_new_connection_with_80018(world: AnyWorld, key: str) -> None:
    frame = world.client(resume=key).gets(CONNECTED)
    assert (frame["error"]["code"], frame["error"]["statusCode"]) == (80018, 400)


def test_malformed_frame_costs_only_the_connection_that_sent_it(world: AnyWorld, channel: str) -> None:
    other, bad = attached(world, channel, echo="false"), attached(world, channel)
    bad.sends_bytes(b"{nonsense")
    assert "channel" not in bad.gets(ERROR)
    other.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"data": "still here"}])
    other.gets(ACK)
