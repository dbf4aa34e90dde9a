"""Connecting: credentials, versions, refusals, CONNECTED. Ably protocol docs, 1 and 7."""

from __future__ import annotations

import base64

import msgspec
import pytest

from edge.events import ClientPong
from relay.link.frames import Admit, Depart, Revoke, Superseded, Up
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from tests.unit.edge.playbook import START_MS, Client, Edge


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'kid': 'app.key'})}.{part(claims)}.c2ln"


def test_rtn4b_connected_comes_first_and_has_connection_details(edge: Edge) -> None:
    client = edge.open("key=app.key:secret&clientId=bob&v=6")
    edge.gets_nothing(client)
    (admit,) = edge.take(Admit)
    assert (admit.credential, admit.basic, admit.client_id, admit.realtime, admit.version) == ("app.key:secret", True, "bob", True, 6)
    edge.core(edge.admitted(admit.req, "SuJTceISnT", client_id="bob"))
    connected = edge.gets(client, action=4, connectionId="SuJTceISnT", error=None, flags=None, msgSerial=None)
    assert connected["connectionDetails"] == {
        "connectionKey": "SuJTceISnT!0.mac",
        "clientId": "bob",
        "maxMessageSize": 65536,
        "maxInboundRate": 500,
        "maxOutboundRate": 500,
        "maxFrameSize": 524288,
        "serverId": "edge.local",
        "connectionStateTtl": 120000,
        "maxIdleInterval": 15000,
    }


def test_rsa7b_an_anonymous_connection_has_no_client_id_in_its_details(edge: Edge) -> None:
    client = edge.open("access_token=a.b.c&v=5")
    edge.core(edge.admitted(edge.take(Admit)[0].req, "s000000001", client_id=None))
    assert "clientId" not in edge.gets(client, action=4)["connectionDetails"]


@pytest.mark.parametrize("name", ["accessToken", "access_token", "token"])
def test_a_token_may_come_under_any_of_its_names(edge: Edge, name: str) -> None:
    edge.open(f"{name}=tok.en&v=6")
    (admit,) = edge.take(Admit)
    assert (admit.credential, admit.basic) == ("tok.en", False)


@pytest.mark.parametrize(
    ("header", "credential", "basic"),
    [
        ("Basic " + base64.b64encode(b"app.key:secret").decode(), "app.key:secret", True),
        ("Bearer a.b.c", "a.b.c", False),
        ("bearer " + base64.b64encode(b"a.b.c").decode(), "a.b.c", False),
    ],
)
def test_the_authorization_header_is_read_where_the_query_has_no_credential(edge: Edge, header: str, credential: str, basic: bool) -> None:
    edge.open("v=6", headers={"authorization": header})
    (admit,) = edge.take(Admit)
    assert (admit.credential, admit.basic) == (credential, basic)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("v=6", 40101),
        ("v=6&key=nonsense", 40101),
        ("v=6&accessToken=nonsense", 40101),
        ("v=1.2&key=a.b:c", 40017),
        ("v=0.8&key=a.b:c", 40017),
        ("v=six&key=a.b:c", 40017),
        ("v=6&key=a.b:c&clientId=", 40012),
        ("v=6&key=a.b:c&clientId=*", 40012),
        (f"v=6&accessToken={jwt(exp=START_MS // 1000 - 60)}", 40142),
        ("&".join(f"p{n}=1" for n in range(200)), 40000),
    ],
)
def test_1_7_a_refusal_is_an_error_message_and_then_a_normal_close(edge: Edge, query: str, code: int) -> None:
    client = edge.open(query)
    edge.gets(client, action=9, code=code, channel=None)
    assert client.closed == 1000
    edge.core_gets_nothing()


@pytest.mark.parametrize(("version", "spoken"), [("2", 2), ("5", 5), ("6", 6), ("150", 6), ("2.0", 2), (None, 2)])
def test_rsc7_a_later_version_is_answered_as_the_highest_known(edge: Edge, version: str | None, spoken: int) -> None:
    edge.open("key=a.b:c" + (f"&v={version}" if version else ""))
    assert edge.take(Admit)[0].version == spoken


@pytest.mark.parametrize(
    ("code", "action"), [(40101, 9), (40144, 9), (40142, 9), (40102, 9), (40400, 9), (80021, 6), (50003, 6), (50320, 6), (42910, 6)]
)
def test_the_cores_refusal_is_told_with_its_code(edge: Edge, code: int, action: int) -> None:
    client = edge.open()
    edge.refused(edge.take(Admit)[0].req, code)
    edge.gets(client, action=action, code=code, channel=None)
    assert client.closed == 1000


def test_refusals_are_told_in_the_clients_format(edge: Edge) -> None:
    edge.gets(edge.open("format=msgpack&v=6"), action=9, code=40101)


def test_api_keys_are_refused_with_a_hint_where_the_policy_says_so() -> None:
    edge = Edge(basic_auth="refuse")
    assert "token" in edge.gets(edge.open(), action=9, code=40101)["error"]["message"]
    edge = Edge(basic_auth="rest")
    edge.gets(edge.open(), action=9, code=40101)


def test_40103_an_api_key_without_tls_is_refused_outside_dev() -> None:
    edge = Edge(dev=False)
    edge.gets(edge.open(tls=False), action=9, code=40103)
    edge.open("access_token=a.b.c", tls=False)
    assert len(edge.take(Admit)) == 1


def test_rtn15c7_a_failed_resume_is_a_connected_with_an_error(edge: Edge) -> None:
    client = edge.open("key=a.b:c&v=6&resume=_____!ablyjs_test_fake-key____")
    (admit,) = edge.take(Admit)
    assert admit.resume == "_____!ablyjs_test_fake-key____"
    edge.core(edge.admitted(admit.req, "s000000001", error=ErrorInfo.of(80018, "invalid connection key")))
    edge.gets(client, action=4, connectionId="s000000001", code=80018)
    assert client.closed is None


def test_recover_is_passed_on_and_never_together_with_resume(edge: Edge) -> None:
    edge.open("key=a.b:c&v=6&recover=k&resume=r")
    (admit,) = edge.take(Admit)
    assert (admit.resume, admit.recover) == ("r", None)


def test_a_resumed_connection_closes_its_old_socket_and_stays(edge: Edge) -> None:
    old = edge.connect(session="s000000001")
    new = edge.connect("key=a.b:c&v=6&resume=s000000001!0.mac", session="s000000001")
    edge.gets(old, action=6, code=80003)
    assert old.closed == 1000
    assert new.closed is None
    assert edge.take(Depart) == []


def resumed(edge: Edge, session: str, incarnation: int) -> Client:
    client = edge.open(f"key=a.b:c&v=6&resume={session}!0.mac")
    (admit,) = edge.take(Admit)
    edge.core(edge.admitted(admit.req, session, incarnation=incarnation))
    edge.gets(client, action=4, connectionId=session)
    return client


def test_a_connection_that_goes_on_at_another_edge_is_closed_here_without_departing(edge: Edge) -> None:
    client = edge.connect(session="s000000001")
    edge.core(Superseded("s000000001", 1))
    edge.gets(client, action=6, code=80003)
    assert client.closed == 1000
    assert edge.take(Depart) == []


def test_what_supersedes_an_earlier_incarnation_does_not_close_the_later_one(edge: Edge) -> None:
    """The answer to a resume and the word to whatever held the connection before travel on different lanes."""
    client = resumed(edge, "s000000001", 2)
    edge.core(Superseded("s000000001", 2), Superseded("s000000001", 1), Superseded("unheard-of", 7))
    assert client.closed is None


def test_the_first_frame_on_a_resumed_connection_is_told_once(edge: Edge) -> None:
    client = resumed(edge, "s000000001", 3)
    assert edge.take(Up) == []
    for _ in range(2):
        edge.sends(client, action=0, id="x")
        edge.gets(client, action=0)
    assert edge.take(Up) == [Up("s000000001", 3)]
    other = edge.connect(session="s000000002")
    edge.sends(other, action=0, id="x")
    assert edge.take(Up) == []


def test_the_end_of_a_resumed_connection_names_its_incarnation(edge: Edge) -> None:
    edge.lose(resumed(edge, "s000000001", 3))
    assert edge.take(Depart) == [Depart("s000000001", False, 3)]


def test_an_end_that_a_dead_core_may_not_have_heard_is_told_to_another() -> None:
    edge = Edge(cores=2)
    client = edge.connect(link=1)
    edge.lose(client)
    assert (edge.take(Depart, link=1), edge.take(Depart, link=2)) == ([Depart(client.session, False, 0)], [])
    edge.link_lost(1)
    assert edge.take(Depart, link=2) == [Depart(client.session, False, 0)]
    late = edge.connect(link=2)
    edge.lose(late)
    edge.take(Depart, link=2)
    edge.wait(11.0)
    third = edge.link_up()
    edge.link_lost(2)
    assert edge.take(Depart, link=third) == []


def test_an_end_without_any_link_is_told_to_the_next(edge: Edge) -> None:
    client = edge.connect()
    edge.link_lost()
    edge.lose(client)
    edge.wait(15.0)
    link = edge.link_up()
    assert edge.take(Depart, link=link) == [Depart(client.session, False, 0)]


def test_without_any_link_a_client_waits_and_is_then_sent_elsewhere() -> None:
    edge = Edge(cores=0)
    client = edge.open()
    edge.wait(4.0)
    edge.gets_nothing(client)
    edge.wait(2.0)
    edge.gets(client, action=6, code=50320)


def test_a_link_that_comes_up_in_time_admits_who_waits() -> None:
    edge = Edge(cores=0)
    client = edge.open()
    edge.wait(3.0)
    link = edge.link_up()
    (admit,) = edge.take(Admit, link=link)
    edge.core(edge.admitted(admit.req, "s000000001"), link=link)
    edge.gets(client, action=4)


def test_an_admit_that_a_lost_link_swallowed_is_asked_again_on_another() -> None:
    edge = Edge(cores=2)
    client = edge.open()
    link = 1 if edge.sent[1] else 2
    edge.link_lost(link)
    (admit,) = edge.take(Admit, link=3 - link)
    edge.core(edge.admitted(admit.req, "s000000001"), link=3 - link)
    edge.gets(client, action=4)


def test_a_core_that_does_not_answer_costs_a_disconnect_within_ten_seconds(edge: Edge) -> None:
    client = edge.open()
    edge.wait(9.5)
    edge.gets(client, action=6, code=50003)


def test_at_most_64_admits_are_outstanding_on_a_link(edge: Edge) -> None:
    for _ in range(100):
        edge.open()
    asked = edge.take(Admit)
    assert len(asked) == 64
    for admit in asked[:10]:
        edge.refused(admit.req, 40101)
    assert len(edge.take(Admit)) == 10


def test_what_a_client_sends_before_connected_is_bounded_in_bytes() -> None:
    edge = Edge(limits=EdgeLimits(max_frame_bytes=1_000))
    client = edge.open()
    for _ in range(2):
        edge.send_raw(client, b" " * 500)
    edge.gets_nothing(client)
    edge.send_raw(client, b" ")
    edge.gets(client, action=9, code=80013)
    assert client.closed == 1000


def test_80021_connects_of_one_address_are_limited() -> None:
    edge = Edge(limits=EdgeLimits(address_connects_burst=3, address_connects_per_s=1))
    assert [bool(edge.open().inbox) for _ in range(4)] == [False, False, False, True]
    edge.gets(edge.clients[4], action=6, code=80021)
    edge.wait(1.1)
    edge.gets_nothing(edge.open())


def test_80021_refused_credentials_of_one_address_are_limited() -> None:
    edge = Edge(limits=EdgeLimits(address_failures_burst=2, address_failures_per_s=0.5))
    for _ in range(2):
        edge.open()
        edge.refused(edge.take(Admit)[0].req, 40101)
    edge.gets(edge.open(), action=6, code=80021)
    edge.core_gets_nothing()


def test_a_client_that_hangs_up_before_its_answer_leaves_no_connection_behind(edge: Edge) -> None:
    client = edge.open()
    (admit,) = edge.take(Admit)
    edge.lose(client)
    edge.core(edge.admitted(admit.req, "s000000001"))
    assert edge.take(Depart) == [Depart("s000000001", False, 0)]


def test_rtn12_close_is_answered_with_closed_and_departs(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=7)
    edge.gets(client, action=8)
    assert client.closed == 1000
    assert edge.take(Depart) == [Depart(client.session, True, 0)]


def test_15_43_disconnect_keeps_the_connections_state(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=5)
    assert client.closed == 1000
    assert edge.take(Depart) == [Depart(client.session, False, 0)]


def test_a_lost_socket_departs_without_closing_the_connection(edge: Edge) -> None:
    client = edge.connect()
    edge.lose(client)
    assert edge.take(Depart) == [Depart(client.session, False, 0)]


def test_rtn22a_a_revoked_token_disconnects(edge: Edge) -> None:
    client = edge.connect()
    edge.core(Revoke(client.session, ErrorInfo.of(40141, "token revoked")))
    edge.gets(client, action=6, code=40141)
    assert client.closed == 1000


def test_7_8_a_revoked_key_is_an_error(edge: Edge) -> None:
    client = edge.connect()
    edge.core(Revoke(client.session, ErrorInfo.of(40131, "key revoked")))
    edge.gets(client, action=9, code=40131)


def test_a_connection_survives_the_loss_of_every_link(edge: Edge) -> None:
    client = edge.connect()
    edge.link_lost()
    for _ in range(6):
        edge.wait(10)
        edge.post(ClientPong(client.number))
    assert client.closed is None


def test_readiness_is_not_liveness() -> None:
    edge = Edge(cores=0)
    assert edge.answer(edge.asks("GET", "/healthz", key=None))[0] == 200
    assert edge.answer(edge.asks("GET", "/readyz", key=None))[0] == 503
    edge.link_up()
    assert edge.answer(edge.asks("GET", "/readyz", key=None))[0] == 200
