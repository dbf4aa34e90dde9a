"""What an edge tells the cores of who is attached, and what it shows to those who asked."""

from __future__ import annotations

import json

import msgspec
import pytest

from relay.link import calls
from relay.link.frames import Admit, Counts, Fetch, Lost, Occupancy, Open, Opened, Page, Watch
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.occupancy import ATTACHED, METRICS
from tests.unit.edge.playbook import Client, Edge


def reported(edge: Edge, channel: str = "c") -> list[dict[str, int]]:
    """What the cores were told of a channel since, without the zeros in it."""
    found = [frame for _, frame in edge.reports if frame.channel == channel]
    edge.reports = [(link, frame) for link, frame in edge.reports if frame.channel != channel]
    return [{name: count for name, count in zip(ATTACHED, frame.counts, strict=True) if count} for frame in found]


def told(connections: int, members: int = 0) -> list[int]:
    return [connections, 1, 1, 1, 1, 0, 0, members]


def shown(client: Client) -> list[dict[str, int]]:
    found, client.inbox = client.inbox, []
    return [json.loads(frame["messages"][0]["data"])["metrics"] for frame in found if frame["action"] == 15]


ALL = dict.fromkeys(("connections", "publishers", "subscribers", "presenceConnections", "presenceSubscribers"), 1)


def test_an_attachment_counts_in_every_category_whose_mode_it_was_granted(edge: Edge) -> None:
    client = edge.connect(capability={"*": ["subscribe", "publish"]})
    edge.attach(client, "c")
    assert reported(edge) == [{"connections": 1, "publishers": 1, "subscribers": 1, "presenceSubscribers": 1}]
    other = edge.connect()
    edge.sends(other, action=10, channel="c", params={"modes": "presence"})
    edge.wait(1.5)
    assert reported(edge) == [{"connections": 2, "publishers": 1, "subscribers": 1, "presenceConnections": 1, "presenceSubscribers": 1}]
    edge.sends(other, action=10, channel="c", params={"modes": "publish"})
    edge.wait(1.5)
    assert reported(edge) == [{"connections": 2, "publishers": 2, "subscribers": 1, "presenceSubscribers": 1}]


def test_who_only_publishes_or_waits_counts_when_it_is_attached(edge: Edge) -> None:
    publisher = edge.connect(capability={"*": ["publish"]})
    edge.sends(publisher, action=15, channel="c", msgSerial=0, messages=[{"name": "n"}])
    reader = edge.connect()
    edge.sends(reader, action=10, channel="c")
    assert reported(edge) == []  # a publish is no attachment, and the core has not opened the channel
    edge.sends(publisher, action=10, channel="c")
    assert reported(edge) == [{"connections": 1, "publishers": 1}]


def test_spellings_are_attachments_of_one_channel(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    edge.sends(client, action=10, channel="[?echo=false]c")
    edge.wait(1.5)
    assert [each["connections"] for each in reported(edge)] == [1, 2]


def test_changes_are_reported_at_once_then_once_a_second_with_the_last_state_always(edge: Edge) -> None:
    clients = [edge.connect() for n in range(6)]
    edge.attach(clients[0], "c")
    assert reported(edge) == [ALL]
    for client in clients[1:]:
        edge.sends(client, action=10, channel="c")
        edge.wait(0.1)
    assert reported(edge) == []
    edge.wait(1.0)
    assert [each["connections"] for each in reported(edge)] == [6]
    edge.lose(clients[0])
    edge.sends(clients[1], action=12, channel="c")
    edge.wait(1.5)
    assert [each["connections"] for each in reported(edge)] == [4]
    edge.wait(10)
    assert reported(edge) == []


def test_what_changes_back_within_the_second_is_not_reported(edge: Edge) -> None:
    clients = [edge.connect(), edge.connect()]
    edge.attach(clients[0], "c")
    reported(edge)
    edge.sends(clients[1], action=10, channel="c")
    edge.lose(clients[1])
    edge.wait(3)
    assert reported(edge) == []


def test_zeros_are_reported_and_then_the_channel_is_forgotten(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    edge.wait(2)
    edge.lose(client)
    assert reported(edge) == [ALL, {}]
    assert len(edge.node._desk.occupancies) == 1
    edge.wait(11)
    assert len(edge.node._desk.occupancies) == 0
    assert reported(edge) == []


def test_numbers_grow_over_all_channels_and_links() -> None:
    edge = Edge(cores=2)
    for n in range(20):
        edge.sends(edge.connect(), action=10, channel=f"c{n}", params={"modes": "publish"})
    answered(edge)
    numbers = [frame.number for _, frame in edge.reports]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {link for link, _ in edge.reports} == {1, 2}


def answered(edge: Edge) -> None:
    """Every channel that was asked for is open."""
    for link in list(edge.sent):
        for opening in edge.take(Open, link=link):
            edge.core(Opened(opening.req, edge.serial(opening.channel, 50)), link=link)


def test_what_was_said_on_a_lost_link_is_said_again_on_another_zeros_included(edge: Edge) -> None:
    stays, goes = edge.connect(), edge.connect()
    edge.attach(stays, "c")
    edge.attach(goes, "gone")
    edge.wait(2)
    edge.lose(goes)
    reported(edge), reported(edge, "gone")
    edge.link_lost(1)
    assert edge.reports == []
    edge.wait(3)
    link = edge.link_up("core-9")
    assert {number for number, _ in edge.reports} == {link}
    assert (reported(edge), reported(edge, "gone")) == ([ALL], [{}])
    edge.wait(15)
    assert edge.reports == []


def test_a_new_link_beside_the_old_one_needs_to_be_told_nothing(edge: Edge) -> None:
    edge.attach(edge.connect(), "c")
    reported(edge)
    edge.link_up("core-9")
    edge.wait(3)
    assert edge.reports == []


def test_reports_of_many_channels_take_turns() -> None:
    edge = Edge(limits=EdgeLimits(counts_per_s=20))
    client = edge.connect()
    for n in range(100):
        edge.sends(client, action=10, channel=f"c{n}")
    answered(edge)
    assert len(edge.reports) == 20
    edge.wait(1.0)
    assert len(edge.reports) <= 41
    edge.wait(5.0)
    assert len(edge.reports) == 100
    assert len({frame.channel for _, frame in edge.reports}) == 100


def test_emptied_channels_are_bounded() -> None:
    edge = Edge(limits=EdgeLimits(emptied_channels=3))
    client = edge.connect()
    for n in range(10):
        edge.sends(client, action=10, channel=f"c{n}")
    answered(edge)
    edge.wait(2)
    edge.lose(client)
    assert len(edge.node._desk.occupancies) == 3


# --- the param


def watcher(edge: Edge, param: str = "metrics") -> tuple[Client, int]:
    client = edge.connect()
    opening, answer = edge.attach(client, "c", params={"occupancy": param})
    assert answer["params"] == {"occupancy": param}
    return client, opening.req


def test_the_channel_is_watched_as_long_as_somebody_wants_it(edge: Edge) -> None:
    first, ref = watcher(edge)
    (watch,) = edge.take(Watch)
    assert (watch.ref, watch.on, watch.session) == (ref, True, first.session)
    second = edge.connect()
    edge.sends(second, action=10, channel="c", params={"occupancy": "metrics"})
    assert edge.take(Watch) == []
    edge.lose(first)
    (watch,) = edge.take(Watch)
    assert (watch.on, watch.session) == (True, second.session)
    edge.sends(second, action=10, channel="c")
    (watch,) = edge.take(Watch)
    assert (watch.ref, watch.on) == (ref, False)


def test_it_is_watched_again_wherever_the_channel_is_opened_again(edge: Edge) -> None:
    watcher(edge)
    edge.take(Watch)
    edge.link_lost(1)
    link = edge.link_up("core-9")
    (opening,) = edge.take(Open, link=link)
    (watch,) = edge.take(Watch, link=link)
    assert (watch.ref, watch.on) == (opening.req, True)
    edge.core(Lost(opening.req, ErrorInfo.of(90003, "lost")), link=link)
    edge.wait(2)
    (opening,) = edge.take(Open, link=link)
    assert [frame.ref for frame in edge.take(Watch, link=link)] == [opening.req]


def test_the_message_is_as_sdks_expect_it(edge: Edge) -> None:
    client, ref = watcher(edge)
    edge.core(Occupancy(ref, told(3, members=2)))
    frame = edge.gets(client, action=15, channel="c", timestamp=edge.now_ms, channelSerial=None, connectionId=None)
    (message,) = frame["messages"]
    assert message.keys() == {"name", "data", "encoding"}
    assert (message["name"], message["encoding"]) == ("[meta]occupancy", "json")
    assert json.loads(message["data"]) == {"metrics": dict(zip(METRICS, told(3, members=2), strict=True))}
    assert frame["id"].endswith(":0")
    edge.core(Occupancy(ref, told(4)))
    assert edge.gets(client, action=15)["id"] != frame["id"]


def test_a_category_is_told_when_it_changes_and_not_otherwise(edge: Edge) -> None:
    client, ref = watcher(edge, "metrics.presenceMembers")
    for members in (0, 0, 2, 2, 1):
        edge.core(Occupancy(ref, told(members + 1, members)))
    assert shown(client) == [{"presenceMembers": 0}, {"presenceMembers": 2}, {"presenceMembers": 1}]


def test_cores_that_have_not_read_of_our_own_clients_yet_do_not_make_them_vanish(edge: Edge) -> None:
    client, ref = watcher(edge)
    edge.core(Occupancy(ref, [0] * len(METRICS)))
    assert shown(client) == [dict.fromkeys(METRICS, 0) | ALL]


def test_who_comes_later_is_told_what_is_known_right_after_attached(edge: Edge) -> None:
    _, ref = watcher(edge)
    edge.core(Occupancy(ref, told(7)))
    late = edge.connect()
    edge.sends(late, action=10, channel="c", params={"occupancy": "metrics.connections"})
    assert [frame["action"] for frame in late.inbox] == [11, 15]
    late.inbox.pop(0)
    assert shown(late) == [{"connections": 7}]
    edge.core(Occupancy(ref, [1, 2]))  # not of its shape
    edge.core(Occupancy(ref + 1, told(1)))
    assert shown(late) == []


@pytest.mark.parametrize("param", ["", "metric", "metrics.", "metrics.nothing", "everything", "metrics.connections,metrics.publishers"])
def test_what_is_no_occupancy_is_dropped(edge: Edge, param: str) -> None:
    _, answer = edge.attach(edge.connect(), "c", params={"occupancy": param, "echo": "false"})
    assert answer["params"] == {"echo": "false"}
    assert edge.take(Watch) == []


def test_without_channel_metadata_it_is_dropped_and_a_new_token_without_it_ends_it(edge: Edge) -> None:
    edge.sends(client := edge.connect(capability={"*": ["subscribe"]}), action=10, channel="c", params={"occupancy": "metrics"})
    answered(edge)
    assert "params" not in edge.gets(client, action=11)
    knows = edge.connect()
    edge.sends(knows, action=10, channel="c", params={"occupancy": "metrics"})
    (watch,) = edge.take(Watch)
    edge.sends(knows, action=17, auth={"accessToken": "a.b.c"})
    admit = edge.take(Admit)[-1]
    edge.core(edge.admitted(admit.req, knows.session, capability={"*": ["subscribe", "publish", "presence"]}))
    knows.inbox.clear()
    edge.core(Occupancy(watch.ref, told(9)))
    assert shown(knows) == []
    assert [frame.on for frame in edge.take(Watch)] == [False]


def test_a_client_whose_new_token_lacks_the_right_takes_it_from_nobody_else(edge: Edge) -> None:
    """The core was asked by the right of the first, and tells nobody once that is gone."""
    first, ref = watcher(edge)
    second = edge.connect()
    edge.sends(second, action=10, channel="c", params={"occupancy": "metrics"})
    edge.take(Watch)
    edge.sends(first, action=17, auth={"accessToken": "a.b.c"})
    edge.core(edge.admitted(edge.take(Admit)[-1].req, first.session, capability={"*": ["subscribe", "publish", "presence"]}))
    (watch,) = edge.take(Watch)
    assert (watch.ref, watch.on, watch.session) == (ref, True, second.session)


def test_who_cannot_read_the_channel_is_not_told(edge: Edge) -> None:
    client = edge.connect(capability={"*": ["publish", "channel-metadata"]})
    edge.sends(client, action=10, channel="c", params={"occupancy": "metrics"})
    assert edge.take(Watch) == []


# --- status


def status(edge: Edge, channel: str = "c", **more: object) -> tuple[int, Fetch | None]:
    call = edge.asks("GET", f"/channels/{channel}", **more)  # type: ignore[arg-type]
    for admit in edge.take(Admit):
        edge.core(edge.admitted(admit.req, "rest"))
    return call, next(iter(edge.take(Fetch)), None)


def test_status_is_channel_details(edge: Edge) -> None:
    call, fetch = status(edge, "a%2Fb")
    assert fetch is not None
    assert calls.decode(fetch.what, fetch.body) == calls.Status(channel="a/b")
    edge.core(Page(fetch.req, 200, msgspec.json.encode(told(3, 2))))
    code, body, _ = edge.answer(call)
    assert code == 200
    assert body == {
        "channelId": "a/b",
        "status": {"isActive": True, "occupancy": {"metrics": dict(zip(METRICS, told(3, 2), strict=True))}},
    }


def test_status_survives_the_loss_of_its_core_and_a_page_that_is_none() -> None:
    edge = Edge(cores=1)
    call, _ = status(edge)
    edge.link_up("core-9")
    edge.link_lost(1)
    (again,) = edge.take(Fetch, link=2)
    edge.core(Page(again.req, 200, b"nonsense"), link=2)
    assert set(edge.answer(call)[1]["status"]["occupancy"]["metrics"].values()) == {0}


def test_status_of_a_qualified_channel_leaves_out_its_params(edge: Edge) -> None:
    _, fetch = status(edge, "%5B%3Frewind%3D1%5Dc")
    assert fetch is not None
    assert calls.decode(fetch.what, fetch.body) == calls.Status(channel="c")
    call, fetch = status(edge, "%5Bmeta%5Dc")
    assert fetch is None
    assert edge.answer(call)[1]["error"]["code"] == 40010


def test_a_report_is_as_the_link_has_it(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    ((link, frame),) = edge.reports
    assert (link, frame) == (1, Counts(1, "app", "c", [1, 1, 1, 1, 1, 0, 0], client.session))
