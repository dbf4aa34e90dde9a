"""Statistics as a core keeps them: what it counts, writes, reads and adds up. Ably protocol docs, 8.5 and 14.3."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from core.effects import WriteSession
from core.events import SessionRead, SessionWritten, Tailed
from relay.link import calls
from relay.link.frames import Counted, Depart, Fetch, Page, Present, Refused
from relay.model.limits import CoreLimits
from relay.model.message import RecordBody
from relay.model.stats import GAUGES, OUT_REALTIME, SIZE, checked, entries, interval_id, span
from tests.unit.core.dialogue import START_MS, Dialogue

MINUTE = interval_id(START_MS)


def at(core: Dialogue, seconds: int) -> None:
    """So many seconds later; what was written to the sessions topic is read."""
    for _ in range(seconds):
        core.tick(1.0)
        for write in core.take(WriteSession):
            for each in (core, *core.peers):
                each.happens(SessionRead(write.key, write.value, core.now_ms))
            core.written.append(SessionRead(write.key, write.value, core.now_ms))
            core.happens(SessionWritten(write.ticket, True))


def asks(core: Dialogue, session: str, **query: Any) -> Any:
    req = core.req()
    call = calls.Stats(**{"unit": "minute", "start": "1970-01", "end": "2099-12-31:23:59", "backwards": True, "limit": 100, **query})
    core.edge_sends(Fetch(req, session, calls.STATS, calls.encode(call)))
    core.turns()
    answer = core.answer(req)
    return msgspec.json.decode(answer.body, type=calls.StatsPage) if isinstance(answer, Page) else answer


def shown(core: Dialogue, session: str, **query: Any) -> dict[str, dict[str, int | float]]:
    return {interval: entries(checked(values) or []) for interval, values in asks(core, session, **query).items}


def outbound(count: int) -> list[int]:
    values = [0] * SIZE
    values[len(GAUGES) + OUT_REALTIME] = count
    return values


def inbound(found: dict[str, dict[str, int | float]], interval: str = MINUTE) -> int | float:
    return found[interval].get("messages.inbound.all.messages.count", 0)


@pytest.fixture
def core() -> Dialogue:
    made = Dialogue()
    made.edge_up()
    return made


# --- counting


def test_what_is_published_counts_once_it_is_durable(core: Dialogue) -> None:
    session = core.admitted().session
    core.append(session, "room")
    at(core, 6)
    assert "messages.inbound.all.messages.count" not in shown(core, session).get(MINUTE, {}), "nobody knows yet whether it will be"
    core.kafka_round()
    at(core, 6)
    found = shown(core, session)[MINUTE]
    assert (found["messages.inbound.realtime.messages.count"], found["connections.all.opened"]) == (1, 1)
    assert found["messages.inbound.realtime.messages.data"] > 1


def test_a_publish_over_rest_is_told_from_others(core: Dialogue) -> None:
    session = core.admitted(realtime=False).session
    core.append(session, "room")
    core.kafka_round()
    at(core, 6)
    found = shown(core, session)[MINUTE]
    assert (found["messages.inbound.rest.messages.count"], found.get("connections.all.opened")) == (1, None)


def test_what_is_sent_again_counts_once_whichever_core_takes_it(core: Dialogue) -> None:
    """The first copy through one core, the second through another, which knows that it is one."""
    other = Dialogue(name="core-2")
    core.peers, other.peers = [other], [core]
    other.edge_up()
    admitted = core.admitted()
    session = admitted.session
    publish_id = f"c:{session}:0"
    core.append(session, "room", publish_id, fresh=False)
    records = core.kafka_writes()
    for each in (core, other):
        each.happens(Tailed(records))
    other.edge_sends(Present(admitted.grant))
    other.ends = dict(core.ends)
    other.append(session, "room", publish_id, fresh=False)
    again = other.kafka_writes()
    for each in (core, other):
        each.happens(Tailed(again))
    for each in (core, other):
        at(each, 6)
    for each in (core, other):
        assert inbound(shown(each, session)) == 1


def test_a_token_request_counts_for_its_app(core: Dialogue) -> None:
    for secret in ("shop.all", "shop.gone"):
        body = msgspec.json.encode({"keyName": secret})
        req = core.req()
        call = calls.RequestToken(secret, msgspec.Raw(body), f"{secret}:0123456789abcdef0123456789abcdef")
        core.edge_sends(Fetch(req, "", calls.REQUEST_TOKEN, calls.encode(call)))
        core.turns()
        core.answer(req)
    session = core.admitted().session
    at(core, 6)
    found = shown(core, session)[MINUTE]
    assert (found["apiRequests.tokenRequests.succeeded"], found["apiRequests.tokenRequests.refused"]) == (1, 1)


def test_connections_have_a_level_that_every_core_sees(core: Dialogue) -> None:
    other = Dialogue(name="core-2")
    core.peers = [other]
    session = core.admitted().session
    core.admitted()
    at(core, 6)
    for _ in range(6):
        other.tick(1.0)
        for write in other.take(WriteSession):
            core.happens(SessionRead(write.key, write.value, core.now_ms))
    found = shown(core, session)[MINUTE]
    assert (found["connections.all.peak"], found["connections.all.opened"]) == (2, 2), "seen twice, and there once"


def test_a_channel_opens_and_is_counted(core: Dialogue) -> None:
    session = core.admitted().session
    core.append(session, "room")
    for _ in range(3):
        core.kafka_round()
    at(core, 6)
    found = shown(core, session)[MINUTE]
    assert (found["channels.peak"], found["channels.opened"]) == (1, 1)


# --- durable


def test_a_core_that_starts_reads_what_was_there(core: Dialogue) -> None:
    session = core.admitted().session
    core.append(session, "room")
    core.kafka_round()
    at(core, 6)
    later = Dialogue(name="core-2")
    later.edge_up()
    last = {record.key: record for record in core.written}
    for record in last.values():
        later.happens(record)
    again = later.admitted().session
    assert inbound(shown(later, again)) == 1
    assert inbound(shown(later, again, unit="month"), interval_id(START_MS, "month")) == 1


def test_a_record_that_cannot_be_written_is_written_later(core: Dialogue) -> None:
    session = core.admitted().session
    core.append(session, "room")
    core.kafka_round()
    for _ in range(6):
        core.tick(1.0)
        for write in core.take(WriteSession):
            core.happens(SessionWritten(write.ticket, False))
    assert core.counted("stats.write_failed") > 0
    at(core, 6)
    assert inbound(shown(core, session)) == 1


def test_a_minute_that_is_over_has_a_record_of_its_own(core: Dialogue) -> None:
    core.admitted()
    at(core, 130)
    records = {record.key for record in core.written if record.key.startswith("stats:shop:") and record.key.endswith(MINUTE)}
    assert len(records) == 1
    assert len([record for record in core.written if record.key in records]) == 1, "written once"


def test_statistics_go_when_their_time_is_over() -> None:
    core = Dialogue(limits=CoreLimits(stats_minutes_s=100.0))
    core.edge_up()
    core.edge_sends(Depart(core.admitted().session, closed=True))
    at(core, 400)
    session = core.admitted().session
    assert MINUTE not in shown(core, session)
    assert interval_id(START_MS, "hour") in shown(core, session, unit="hour")
    values = [record.value for record in core.written if record.key.startswith("stats:shop:") and record.key.endswith(MINUTE)]
    assert values[-1] is None


def test_entries_are_bounded() -> None:
    core = Dialogue(limits=CoreLimits(stats_entries=4))
    core.edge_up()
    session = core.admitted().session
    at(core, 130)
    assert core.node.status()["statsEntries"] == 4
    assert core.counted("stats.full") > 0
    assert shown(core, session)


# --- what edges report


def reports(core: Dialogue, session: str, count: int, *, interval: str = "", app: str = "shop", link: int = 1) -> None:
    core.edge_sends(Counted(app, session, [(interval or interval_id(core.now_ms), outbound(count))], []), link)
    at(core, 1)


def test_the_last_word_of_an_edge_counts_through_whichever_core(core: Dialogue) -> None:
    session = core.admitted().session
    reports(core, session, 5)
    reports(core, session, 9)
    reports(core, session, 7)  # came late
    assert shown(core, session)[MINUTE]["messages.outbound.all.messages.count"] == 9


def test_two_edges_add_up(core: Dialogue) -> None:
    core.edge_up(2, boot="boot-2")
    session, other = core.admitted().session, core.admitted(link=2).session
    reports(core, session, 5)
    reports(core, other, 6, link=2)
    assert shown(core, session)[MINUTE]["messages.outbound.all.messages.count"] == 11


def test_an_edge_is_not_believed_about_apps_that_it_has_nobody_of(core: Dialogue) -> None:
    session = core.admitted().session
    reports(core, session, 5, app="bank")
    assert core.counted("stats.no_witness") == 1
    bank = core.admitted(f"bank.all:{'0123456789abcdef' * 2}").session
    assert "messages.outbound.all.messages.count" not in shown(core, bank).get(MINUTE, {})
    reports(core, bank, 5, app="bank")
    reports(core, "gone", 6, app="bank")
    assert shown(core, bank)[MINUTE]["messages.outbound.all.messages.count"] == 6, "of an app that it had somebody of"


@pytest.mark.parametrize(
    "report",
    [
        ("2020-01-01:00:00", outbound(1)),
        ("2099-01-01:00:00", outbound(1)),
        ("x", outbound(1)),
        (MINUTE, [-1] * SIZE),
        (MINUTE, [1 << 60]),
    ],
)
def test_what_an_edge_cannot_have_counted_is_refused(core: Dialogue, report: tuple[str, list[int]]) -> None:
    session = core.admitted().session
    core.edge_sends(Counted("shop", session, [report], []))
    assert core.counted("stats.refused") == 1


def test_an_edge_has_no_say_in_how_many_there_are(core: Dialogue) -> None:
    session = core.admitted().session
    core.edge_sends(Counted("shop", session, [(MINUTE, [1_000] * SIZE)], []))
    at(core, 6)
    assert shown(core, session)[MINUTE]["connections.all.peak"] == 1


# --- what is asked


def test_statistics_need_their_own_operation(core: Dialogue) -> None:
    session = core.admitted(f"shop.chat:{'0123456789abcdef' * 2}").session
    answer = asks(core, session)
    assert isinstance(answer, Refused)
    assert answer.error.code == 40160


def posts(core: Dialogue, session: str, *items: Any) -> Any:
    req = core.req()
    core.edge_sends(Fetch(req, session, calls.POST_STATS, calls.encode(calls.PostStats(msgspec.Raw(msgspec.json.encode(items))))))
    core.turns()
    core.sessions_round()
    return core.answer(req)


def posted(minute: str, count: int, out: int) -> dict[str, Any]:
    return {
        "intervalId": minute,
        "inbound": {"realtime": {"messages": {"count": count, "data": count * 100}}},
        "outbound": {"realtime": {"messages": {"count": out, "data": out * 100}}},
    }


@pytest.fixture
def sandboxed() -> tuple[Dialogue, str]:
    core = Dialogue(sandbox=True)
    core.edge_up()
    session = core.admitted().session
    answer = posts(
        core, session, posted("2026-02-03:15:03", 50, 20), posted("2026-02-03:15:04", 60, 10), posted("2026-02-03:15:05", 70, 40)
    )
    assert answer.status == 201
    return core, session


def test_minutes_that_a_suite_posts_are_summed_up(sandboxed: tuple[Dialogue, str]) -> None:
    core, session = sandboxed
    found = shown(core, session, end="2026-02-03:23:59")
    assert [(interval, inbound(found, interval)) for interval in found] == [
        ("2026-02-03:15:05", 70),
        ("2026-02-03:15:04", 60),
        ("2026-02-03:15:03", 50),
    ]
    for unit in ("hour", "day", "month"):
        interval = "2026-02-03:15:05"[: {"hour": 13, "day": 10, "month": 7}[unit]]
        found = shown(core, session, unit=unit, end=interval)
        assert (list(found), inbound(found, interval)) == ([interval], 180)


@pytest.mark.parametrize("backwards", [True, False])
def test_pages_follow_one_another(sandboxed: tuple[Dialogue, str], backwards: bool) -> None:
    core, session = sandboxed
    seen, after, more = [], None, True
    while more:
        page = asks(core, session, end="2026-02-03:15:05", backwards=backwards, limit=1, after=after)
        ((after, _),) = page.items
        seen.append(after[-2:])
        more = page.more
    assert seen == (["05", "04", "03"] if backwards else ["03", "04", "05"])


@pytest.mark.parametrize("item", [{}, {"intervalId": "2026-02-03"}, {"intervalId": 5}, 7, {"intervalId": "2026-02-30:00:00"}])
def test_what_cannot_be_posted_is_refused(sandboxed: tuple[Dialogue, str], item: Any) -> None:
    core, session = sandboxed
    assert posts(core, session, item).error.code == 40000


def test_nothing_is_posted_outside_a_sandbox(core: Dialogue) -> None:
    assert posts(core, core.admitted().session).error.code == 40400


def test_a_minute_is_shown_on_its_metachannel_once_it_is_over(core: Dialogue) -> None:
    core.admitted()
    shown_records = []
    for _ in range(150):
        at(core, 1)
        shown_records += [record for record in core.kafka_round() if record.key == b"shop:[meta]stats:minute"]
    assert [record.id for record in shown_records][:1] == [f"u:shop:{MINUTE}"]
    assert len({record.id for record in shown_records}) == len(shown_records)
    (message,) = msgspec.msgpack.decode(shown_records[0].value, type=RecordBody).messages
    assert message.name == "update"
    about = msgspec.json.decode(message.data)
    assert (about["intervalId"], about["unit"], about["appId"]) == (MINUTE, "minute", "shop")
    assert about["entries"]["connections.all.opened"] == 1
    assert shown_records[0].timestamp > span(MINUTE)[1] + 10_000
