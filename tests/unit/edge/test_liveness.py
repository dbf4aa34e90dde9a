"""Heartbeats, expiry and reauthentication: what time does to a connection.

Specification RTN22, RTN23; Ably protocol docs, 2.5, 7.8, 7.9.
"""

from __future__ import annotations

import pytest

from edge.events import ClientPong
from relay.link.frames import Admit, Append, Open, Opened, Present, Renew
from tests.unit.edge.playbook import Client, Edge


def alive(edge: Edge, client: Client, seconds: float) -> None:
    """Time passes with the client answering pings."""
    for _ in range(int(seconds // 5)):
        edge.wait(5)
        edge.post(ClientPong(client.number))


def test_rtn23a_a_silent_connection_gets_heartbeats_within_its_idle_interval(edge: Edge) -> None:
    client = edge.connect()
    alive(edge, client, 60)
    beats = [message for message in client.inbox if message == {"action": 0}]
    assert 4 <= len(beats) <= 6
    assert client.pings == len(beats)


def test_rtn23b_heartbeats_false_gets_websocket_pings_alone(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false")
    alive(edge, client, 60)
    edge.gets_nothing(client)
    assert client.pings >= 4


@pytest.mark.parametrize(("asked", "granted"), [("7000", 7000), ("1", 5000), ("99999999", 1_800_000), ("soon", 15000)])
def test_the_idle_interval_may_be_asked_for(edge: Edge, asked: str, granted: int) -> None:
    client = edge.open(f"key=a.b:c&v=6&heartbeatInterval={asked}")
    edge.core(edge.admitted(edge.take(Admit)[0].req, "s000000001"))
    assert edge.gets(client, action=4)["connectionDetails"]["maxIdleInterval"] == granted


def test_rtn13e_a_ping_is_answered_with_its_id(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=0, id="x7f2")
    assert edge.gets(client) == {"action": 0, "id": "x7f2"}


def test_a_peer_that_answers_no_ping_is_dead(edge: Edge) -> None:
    client = edge.connect()
    edge.wait(24)
    assert client.closed is None
    edge.wait(3)
    assert client.closed == 1000


def test_rtn22_auth_is_asked_for_30_s_before_the_token_expires(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6&heartbeats=false", token_expires=edge.now_ms + 35_000)
    alive(edge, client, 4)
    edge.gets_nothing(client)
    alive(edge, client, 6)
    assert edge.gets(client) == {"action": 17}
    alive(edge, client, 10)
    edge.gets_nothing(client)


def test_rtn22a_an_expired_token_disconnects_with_40142(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6&heartbeats=false", token_expires=edge.now_ms + 5_000)
    edge.wait(4.5)
    edge.gets_nothing(client)
    edge.wait(1)
    assert edge.gets(client, action=6, code=40142)["error"]["statusCode"] == 401
    assert client.closed == 1000


def test_rtc8a1_a_new_token_is_answered_with_connected_under_the_same_id_and_key(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6&heartbeats=false", token_expires=edge.now_ms + 35_000, client_id="bob")
    alive(edge, client, 10)
    edge.gets(client, action=17)
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    (admit,) = edge.take(Admit)
    assert (admit.credential, admit.session) == ("d.e.f", client.session)
    edge.core(edge.admitted(admit.req, client.session, key="", client_id="bob", token_expires=edge.now_ms + 3_600_000))
    connected = edge.gets(client, action=4, connectionId=client.session, connectionKey=f"{client.session}!0.mac", error=None)
    assert connected["connectionDetails"]["connectionKey"] == f"{client.session}!0.mac"
    alive(edge, client, 60)
    assert client.closed is None


def test_rtc8a2_another_identity_fails_the_connection(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6", client_id="bob")
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    edge.core(edge.admitted(edge.take(Admit)[0].req, client.session, client_id="eve"))
    edge.gets(client, action=9, code=40102)
    assert client.closed == 1000


@pytest.mark.parametrize("auth", [None, "text", {}, {"accessToken": 7}])
def test_an_auth_without_a_token_is_refused(edge: Edge, auth: object) -> None:
    client = edge.connect()
    edge.sends(client, action=17, auth=auth)
    edge.gets(client, action=9, code=40101)


def test_7_9_channels_beyond_the_new_capability_fail_after_connected_and_the_rest_stay(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6", client_id="bob")
    edge.attach(client, "gone")
    edge.attach(client, "kept")
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    edge.core(edge.admitted(edge.take(Admit)[0].req, client.session, key="", client_id="bob", capability={"kept": ["subscribe"]}))
    edge.gets(client, action=4)
    edge.gets(client, action=9, channel="gone", code=40160)
    edge.gets(client, action=11, channel="kept", flags=262144 | 524288 | 4, channelSerial=edge.serial("kept", 50))
    edge.sends(client, action=15, channel="kept", msgSerial=0, messages=[{"name": "x"}])
    edge.gets(client, action=2, code=40160)
    edge.sends(client, action=10, channel="gone")
    edge.gets(client, action=9, channel="gone", code=40160)
    assert client.closed is None


def test_7_9_a_gained_publish_works_without_another_attach(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6", client_id="bob", capability={"*": ["subscribe"]})
    edge.attach(client, "c")
    edge.sends(client, action=15, channel="c", msgSerial=0, messages=[{"name": "x"}])
    edge.gets(client, action=2, code=40160)
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    edge.core(edge.admitted(edge.take(Admit)[0].req, client.session, key="", client_id="bob"))
    edge.gets(client, action=4)
    edge.gets(client, action=11, channel="c")
    edge.sends(client, action=15, channel="c", msgSerial=1, messages=[{"name": "x"}])
    assert len(edge.take(Append)) == 1


def test_7_9_a_gained_subscribe_delivers_without_another_attach(edge: Edge) -> None:
    client = edge.connect("token=a.b.c&v=6", client_id="bob", capability={"*": ["publish"]})
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, channel="c", flags=131072)
    edge.core_gets_nothing()
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    edge.core(edge.admitted(edge.take(Admit)[0].req, client.session, key="", client_id="bob"))
    edge.gets(client, action=4)
    edge.gets(client, action=11, channel="c")
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial("c", 10)), edge.record(opening.req, 11))
    edge.gets(client, action=15, channel="c")


def test_a_grant_is_renewed_before_it_ends_and_told_to_other_links(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false", grant_s=300)
    alive(edge, client, 170)
    assert edge.take(Renew) == []
    alive(edge, client, 80)
    (renew,) = edge.take(Renew)
    assert renew.session == client.session
    edge.core(edge.admitted(renew.req, client.session, key=""))
    alive(edge, client, 200)
    assert client.closed is None
    assert edge.take(Renew) == []


def test_a_refused_renewal_ends_the_connection_with_its_reason(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false", grant_s=100)
    alive(edge, client, 60)
    edge.refused(edge.take(Renew)[0].req, 40141)
    edge.gets(client, action=6, code=40141)


def test_a_grant_that_no_core_was_there_to_renew_disconnects_and_does_not_fail_the_client(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false", grant_s=300)
    edge.link_lost()
    alive(edge, client, 295)
    assert client.closed is None
    edge.wait(10)
    edge.gets(client, action=6, code=50320)


def test_a_renewal_of_a_grant_that_the_core_holds_for_expired_disconnects(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false", grant_s=100)
    alive(edge, client, 60)
    edge.refused(edge.take(Renew)[0].req, 40101)
    edge.gets(client, action=6, code=40101)


def test_a_renewal_that_a_lost_link_swallowed_is_asked_again(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false", grant_s=100)
    alive(edge, client, 55)
    assert len(edge.take(Renew)) == 1
    edge.link_lost()
    edge.wait(1)
    link = edge.link_up()
    edge.post(ClientPong(client.number))
    edge.wait(6)
    assert len(edge.take(Renew, link=link)) == 1
    assert len(edge.take(Present, link=link)) == 2, "on both lanes, as order holds within a lane only"


def test_a_reauthentication_on_another_link_presents_the_connection_there_first() -> None:
    edge = Edge()
    client = edge.connect("token=a.b.c&v=6", client_id="bob")
    edge.link_lost()
    link = edge.link_up("core-b")
    edge.sends(client, action=17, auth={"accessToken": "d.e.f"})
    assert [type(frame) for frame in edge.sent[link]] == [Present, Present, Admit]
