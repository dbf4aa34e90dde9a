"""What an edge counts for statistics, and `GET /stats` as it serves it. Specification RSC6, TS12; Ably protocol docs, 8.5 and 8.7."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relay.link import calls
from relay.link.frames import Page
from relay.model.message import Message, PresenceAction, PresenceItem
from relay.model.stats import checked, entries, interval_id
from tests.unit.edge.playbook import APP, KEY, START_MS, Edge
from tests.unit.edge.test_history import admit, body, fetched, links, past


def entries_of(edge: Edge, interval: str) -> dict[str, int | float]:
    """What cores have been told of an interval last."""
    found = [dict([*frame.ended, *frame.current]) for _, frame in edge.usage if frame.app == APP]
    told = [each[interval] for each in found if interval in each]
    return entries(checked(told[-1]) or []) if told else {}


def test_what_goes_out_is_counted_once_for_each_client(edge: Edge) -> None:
    clients = [edge.connect() for _ in range(3)]
    opening, _ = edge.attach(clients[0], "room")
    for client in clients[1:]:
        edge.sends(client, action=10, channel="room")
    record = edge.record(opening.req, 51, Message(data="a"), Message(data="b"))
    edge.core(record)
    edge.wait(6)
    found = entries_of(edge, interval_id(START_MS))
    assert found["messages.outbound.realtime.messages.count"] == 6
    assert found["messages.outbound.realtime.messages.data"] == 3 * len(record.body)
    assert {(frame.app, frame.session) for _, frame in edge.usage} == {(APP, clients[-1].session)}


def test_a_message_that_its_publisher_does_not_get_is_not_counted_for_it(edge: Edge) -> None:
    quiet = edge.connect(f"key={KEY}&v=6&echo=false")
    opening, _ = edge.attach(quiet, "room")
    edge.sends(edge.connect(), action=10, channel="room")
    edge.core(edge.record(opening.req, 51, connection=quiet.session))
    edge.wait(6)
    assert entries_of(edge, interval_id(START_MS))["messages.outbound.realtime.messages.count"] == 1


def test_presence_is_counted_apart(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "room")
    edge.core(edge.change(opening.req, 51, "other00001", PresenceItem(action=PresenceAction.ENTER, client_id="bob")))
    edge.wait(6)
    found = entries_of(edge, interval_id(START_MS))
    assert found["messages.outbound.realtime.presence.count"] == 1
    assert "messages.outbound.realtime.messages.count" not in found


def test_api_requests_are_counted_by_how_they_end(edge: Edge) -> None:
    call, fetch, _ = ask(edge)
    edge.core(Page(fetch.req, 200, msgspec.json.encode(calls.StatsPage([], more=False))))
    assert edge.answer(call)[0] == 200
    edge.asks("GET", "/stats", query="limit=0")
    edge.wait(6)
    found = entries_of(edge, interval_id(START_MS))
    assert {name: value for name, value in found.items() if "apiRequests" in name} == {
        "apiRequests.other.succeeded": 1,
        "apiRequests.other.refused": 1,
        "apiRequests.all.succeeded": 1,
        "apiRequests.all.refused": 1,
    }


def test_what_comes_out_of_history_is_rest(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/room/messages")
    admit(edge)
    fetch, _ = fetched(edge)
    past(edge, fetch, "room", calls.Item(9, 0, 1, body(Message(data="a"), Message(data="b"))))
    assert edge.answer(call)[0] == 200
    edge.wait(6)
    assert entries_of(edge, interval_id(START_MS))["messages.outbound.rest.messages.count"] == 2


def test_an_edge_with_nothing_new_to_say_is_silent(edge: Edge) -> None:
    opening, _ = edge.attach(edge.connect(), "room")
    edge.core(edge.record(opening.req, 51))
    edge.wait(100)
    edge.usage.clear()
    edge.wait(30)
    assert edge.usage == []


def test_what_was_counted_without_a_link_is_said_later(edge: Edge) -> None:
    opening, _ = edge.attach(edge.connect(), "room")
    edge.core(edge.record(opening.req, 51))
    edge.link_lost()
    edge.wait(100)
    assert edge.usage == []
    link = edge.link_up("core-9")
    edge.wait(6)
    assert {on for on, _ in edge.usage} == {link}
    assert entries_of(edge, interval_id(START_MS))["messages.outbound.realtime.messages.count"] == 1


# --- GET /stats


def ask(edge: Edge, query: str = "", **more: Any) -> tuple[int, Any, Any]:
    call = edge.asks("GET", "/stats", query=query, **more)
    admit(edge)
    fetch, read = fetched(edge)
    assert fetch.what == calls.STATS
    return call, fetch, read


VALUES = [0] * 8 + [5]


def test_rsc6_a_page_has_links_to_where_it_goes_on(edge: Edge) -> None:
    call, fetch, read = ask(edge, "end=2026-02-03:15:05&limit=2")
    assert (read.unit, read.end, read.backwards, read.limit, read.after) == ("minute", "2026-02-03:15:05", True, 2, None)
    page = calls.StatsPage([("2026-02-03:15:05", VALUES), ("2026-02-03:15:04", VALUES)], more=True)
    edge.core(Page(fetch.req, 200, msgspec.json.encode(page)))
    status, found, _ = edge.answer(call)
    assert status == 200
    assert [each["intervalId"] for each in found] == ["2026-02-03:15:05", "2026-02-03:15:04"]
    assert found[0]["entries"]["messages.inbound.all.messages.count"] == 5
    assert found[0]["appId"] == APP
    shown = links(edge, call)
    assert set(shown) == {"first", "current", "next"}
    assert shown["next"] == shown["first"] + "&cursor=2026-02-03%3A15%3A04"
    edge.asks("GET", "/stats", query=shown["next"].partition("?")[2])
    _, again = fetched(edge)
    assert again == msgspec.structs.replace(read, after="2026-02-03:15:04")


def test_version_2_reads_the_nested_form(edge: Edge) -> None:
    call, fetch, _ = ask(edge, "by=hour", headers={"x-ably-version": "2"})
    edge.core(Page(fetch.req, 200, msgspec.json.encode(calls.StatsPage([("2026-02-03:15", VALUES)], more=False))))
    _, (found,), _ = edge.answer(call)
    assert (found["unit"], found["inbound"]["realtime"]["messages"]) == ("hour", {"count": 5})
    assert set(links(edge, call)) == {"first", "current"}


def test_statistics_need_their_own_operation(edge: Edge) -> None:
    call = edge.asks("GET", "/stats")
    admit(edge, capability={"*": ["history", "subscribe"]})
    assert (edge.answer(call)[0], edge.answer(call)[1]["error"]["code"]) == (401, 40160)


@pytest.mark.parametrize(("query", "code"), [("limit=0", 40003), ("limit=1001", 40003), ("unit=week", 40003), ("start=x", 40003)])
def test_what_cannot_be_asked_is_refused_without_asking_a_core(edge: Edge, query: str, code: int) -> None:
    call = edge.asks("GET", "/stats", query=query)
    admit(edge)
    assert edge.answer(call)[1]["error"]["code"] == code


def test_statistics_are_posted_to_a_sandbox_only(edge: Edge) -> None:
    call = edge.asks("POST", "/stats", body=b"[]")
    assert edge.answer(call)[0] == 404
