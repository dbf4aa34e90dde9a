"""Derived channels at an edge: who may read through a filter, what passes it, and where that leaves a client. Ably protocol docs, 3.2."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from edge import filters
from edge.filters import Filter
from relay.link import calls
from relay.link.calls import MemberItem, MemberPage
from relay.link.frames import Admit, Append, Counts, Fetch, Lost, Open, Opened, Page, Record, Shut
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.message import Message, PresenceAction, PresenceItem
from relay.model.stats import OUT_REALTIME
from tests.unit.edge.playbook import Client, Edge

SUBSCRIBE = 262144
RESUMED, BACKLOG = 4, 2
ALL = {"*": ["*"], "[filter]*": ["*"]}


def derived(expression: str, path: str = "c", query: str = "") -> str:
    return f"[filter={base64.b64encode(expression.encode()).decode()}{query}]{path}"


A, B = derived("name == 'a'"), derived("name == 'b'")


def named(edge: Edge, ref: int, offset: int, names: str, **fields: Any) -> Record:
    return edge.record(ref, offset, *(Message(name=name, data=f"{offset}{name}") for name in names), **fields)


def reader(edge: Edge, channel: str = A, *, query: str = "key=app.key:secret&v=6") -> tuple[Client, Open]:
    client = edge.connect(query, capability=ALL)
    opening, _ = edge.attach(client, channel)
    return client, opening


def another(edge: Edge, channel: str, *, query: str = "key=app.key:secret&v=6") -> Client:
    """One who attaches where the channel is open."""
    client = edge.connect(query, capability=ALL)
    edge.sends(client, action=10, channel=channel)
    edge.gets(client, action=11, channel=channel)
    return client


def told(client: Client) -> list[tuple[str, str | None]]:
    """The channels and texts of the messages in its inbox."""
    found = [(message["channel"], item.get("data")) for message in client.inbox if message["action"] == 15 for item in message["messages"]]
    client.inbox.clear()
    return found


def stay(edge: Edge, seconds: float, *clients: Client) -> list[list[dict[str, Any]]]:
    """Let time pass with clients that are alive. What each was sent meanwhile, heartbeats apart."""
    until = edge.now + seconds
    while edge.now < until:
        edge.wait(min(5.0, until - edge.now))
        for client in clients:
            edge.sends(client, action=0)
    found = []
    for client in clients:
        found.append([message for message in client.inbox if message["action"] != 0])
        client.inbox.clear()
    return found


# --- attaching ---------------------------------------------------------------------------------------------------------------------------


def test_the_channel_it_is_derived_from_is_opened_and_attached_repeats_the_spelling(edge: Edge) -> None:
    client = edge.connect(capability={"[filter]c": ["subscribe"]})
    opening, attached = edge.attach(client, A)
    assert (opening.channel, opening.witness) == ("c", client.session)
    assert attached == {"action": 11, "channel": A, "channelSerial": edge.serial("c", 50), "flags": SUBSCRIBE}


@pytest.mark.parametrize("resource", ["[filter]c", "[filter]*", "[*]c", "[*]*"])
def test_it_needs_subscribe_on_the_filtered_channel(edge: Edge, resource: str) -> None:
    edge.attach(edge.connect(capability={resource: ["subscribe"]}), A)


@pytest.mark.parametrize(
    ("channel", "capability", "fields", "code"),
    [
        (A, {"*": ["*"], "c": ["*"]}, {}, 40160),
        (A, {"[filter]d": ["*"]}, {}, 40160),
        (A, {"[meta]*": ["*"]}, {}, 40160),
        (A, {"[filter]c": ["publish", "presence", "history"]}, {}, 40160),
        (A, {"[filter]c": ["*"]}, {"flags": 131072}, 40160),
        ("[filter=!]c", ALL, {}, 40010),
        ("[filter=]c", ALL, {}, 40010),
        ("[filter]c", ALL, {}, 40010),
        (derived("name ="), ALL, {}, 40010),
        (derived("headers.*"), ALL, {}, 40010),
        (derived("name == '" + "a" * 1_100 + "'"), ALL, {}, 40010),
        (derived("name", "[meta]log"), ALL, {}, 40010),
        (derived("name", query="?rewind=soon"), ALL, {}, 40003),
    ],
)
def test_a_refused_attach_fails_the_channel_and_nothing_else(
    edge: Edge, channel: str, capability: dict[str, list[str]], fields: Any, code: int
) -> None:
    client = edge.connect(capability=capability)
    for _ in range(2):
        edge.sends(client, action=10, channel=channel, **fields)
        edge.gets(client, action=9, channel=channel, code=code)
    edge.core_gets_nothing()
    assert edge.node.channels == 0
    assert client.closed is None


def test_an_expression_is_not_looked_at_for_those_who_may_not_use_it(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_compiled", lambda expression: pytest.fail("compiled"))
    client = edge.connect(capability={"*": ["*"]})
    edge.sends(client, action=10, channel=A)
    edge.gets(client, action=9, code=40160)


def test_what_it_has_not_got_is_not_repeated_and_does_nothing(edge: Edge) -> None:
    client = edge.connect(capability=ALL)
    channel = derived("name", query="?rewind=1&delta=vcdiff")
    params = {"occupancy": "metrics", "rewindLimit": "1", "modes": "subscribe,presence_subscribe", "echo": "false"}
    _, attached = edge.attach(client, channel, params=params)
    assert attached["params"] == {"modes": "subscribe,presence_subscribe", "echo": "false"}
    assert attached["flags"] == SUBSCRIBE
    assert edge.take(Fetch) == []


@pytest.mark.parametrize("action", [14, 15])
def test_nothing_is_published_through_it(edge: Edge, action: int) -> None:
    client, _ = reader(edge)
    what = {"presence": [{"action": 2, "clientId": "ann"}]} if action == 14 else {"messages": [{"data": "x"}]}
    edge.sends(client, action=action, channel=A, msgSerial=0, **what)
    edge.gets(client, action=2, msgSerial=0, code=40010)
    assert edge.take(Append) == []


def test_another_token_without_the_right_ends_it(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.sends(client, action=17, auth={"accessToken": "a.b.c"})
    (admit,) = edge.take(Admit)
    edge.core(edge.admitted(admit.req, client.session, capability={"c": ["*"]}), named(edge, opening.req, 51, "a"))
    edge.gets(client, action=4)
    edge.gets(client, action=9, channel=A, code=40160)
    edge.gets_nothing(client)


def test_it_counts_as_a_subscriber_of_the_channel(edge: Edge) -> None:
    reader(edge)
    counts = [counts for _, counts in edge.reports]
    assert [(each.channel, each.counts) for each in counts] == [("c", [1, 0, 1, 0, 0, 0, 0])]
    assert isinstance(counts[0], Counts)


# --- bounds ------------------------------------------------------------------------------------------------------------------------------


def test_90010_a_connection_has_so_many_derived_channels() -> None:
    edge = Edge(limits=EdgeLimits(filters_per_connection=1))
    client, _ = reader(edge)
    edge.sends(client, action=10, channel=B)
    edge.gets(client, action=9, channel=B, code=90010)
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, channel="c")
    edge.sends(client, action=12, channel=A)
    edge.gets(client, action=13)
    edge.sends(client, action=10, channel=B)
    edge.gets(client, action=11, channel=B)


@pytest.mark.parametrize("limits", [{"filters_per_channel": 1}, {"filters": 1}])
def test_90021_so_many_different_expressions(limits: dict[str, int]) -> None:
    edge = Edge(limits=EdgeLimits(**limits))
    client, _ = reader(edge)
    late = another(edge, derived("name == 'a'", query="?x=1"))  # the same expression in another spelling is no other
    assert edge.node.filters == 1
    edge.sends(late, action=10, channel=B)
    edge.gets(late, action=9, channel=B, code=90021)
    edge.sends(late, action=10, channel=derived("name == 'b'", "other"))
    if "filters" in limits:
        edge.gets(late, action=9, code=90021)
    else:
        assert edge.take(Open)[-1].channel == "other"
    edge.lose(client)
    edge.lose(late)
    assert edge.node.filters == 0  # as long as somebody has it
    another_client = edge.connect(capability=ALL)
    edge.sends(another_client, action=10, channel=B)
    assert all(message["action"] != 9 for message in another_client.inbox)


def test_42911_an_attach_counts_for_what_it_costs() -> None:
    """To make a filter takes 20 times as long as anything else that is as small: one client could keep an edge from all others."""
    edge = Edge(limits=EdgeLimits(inbound_burst=100, inbound_per_s=10.0, filter_attach_cost=40))
    client = edge.connect(capability=ALL)
    compiled = 0
    for number in range(6):
        channel = derived(f"contains(name, '{number}') || headers.*")
        edge.sends(client, action=10, channel=channel)
        (answer,) = [message for message in client.inbox if message.get("channel") == channel]
        compiled += answer["error"]["code"] == 40010
        assert (answer["action"], answer["error"]["code"]) in ((9, 40010), (13, 42911))
        client.inbox.clear()
    assert compiled == 2
    assert client.closed is None
    stay(edge, 10, client)
    edge.attach(client, A)


# --- what passes -------------------------------------------------------------------------------------------------------------------------


def test_several_derived_channels_and_the_channel_itself_each_get_theirs(edge: Edge) -> None:
    client, opening = reader(edge)
    for channel in (B, "c"):
        edge.sends(client, action=10, channel=channel)
        edge.gets(client, action=11, channel=channel)
    assert edge.take(Open) == []
    edge.core(named(edge, opening.req, 51, "a"), named(edge, opening.req, 52, "b"), named(edge, opening.req, 53, "x"))
    assert sorted(told(client)) == [(A, "51a"), (B, "52b"), ("c", "51a"), ("c", "52b"), ("c", "53x")]


@pytest.mark.parametrize("format_", ["json", "msgpack"])
def test_a_record_is_cut_to_what_matches_and_ids_and_serials_stay(edge: Edge, format_: str) -> None:
    client, opening = reader(edge, query=f"key=a.b:c&v=6&format={format_}")
    edge.core(named(edge, opening.req, 51, "xaxa", id="publisher1:7"))
    message = edge.gets(client, action=15, channel=A, id="publisher1:7", channelSerial=edge.serial("c", 51))
    serial = edge.serial("c", 51)
    assert [(each["id"], each["serial"]) for each in message["messages"]] == [
        ("publisher1:7:1", f"{serial}:001"),
        ("publisher1:7:3", f"{serial}:003"),
    ]
    edge.core(named(edge, opening.req, 52, "aa", id="publisher1:8"))
    assert all("id" not in each for each in edge.gets(client, action=15)["messages"])  # a whole record is as on the channel itself


def test_headers_decide(edge: Edge) -> None:
    client, opening = reader(edge, derived("headers.n == `1`"))
    headers = [{"headers": {"n": 1}}, {"headers": {"n": 2}}, {"headers": {}}, {"ref": {"n": 1}}, None]
    edge.core(edge.record(opening.req, 51, *(Message(data=str(index), extras=extras) for index, extras in enumerate(headers))))
    assert [data for _, data in told(client)] == ["0"]


def test_an_expression_is_asked_once_however_many_read_through_it(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    matching = Filter.matching
    monkeypatch.setattr(Filter, "matching", lambda self, messages: asked.append(self) or matching(self, messages))
    first, opening = reader(edge)
    spelled = derived("name == 'a'", query="?x=1")
    others = [another(edge, A), another(edge, A, query="key=a.b:c&v=6&format=msgpack"), another(edge, spelled)]
    edge.core(named(edge, opening.req, 51, "a"))
    assert len(asked) == 1
    assert [told(client) for client in (first, *others)] == [[(A, "51a")], [(A, "51a")], [(A, "51a")], [(spelled, "51a")]]


def test_a_publisher_without_echo_does_not_get_its_own(edge: Edge) -> None:
    client, opening = reader(edge, query="key=a.b:c&v=6&echo=false")
    edge.core(named(edge, opening.req, 51, "ax", connection=client.session), named(edge, opening.req, 52, "ax"))
    assert told(client) == [(A, "52a")]


def test_what_is_counted_as_delivered_is_what_was(edge: Edge) -> None:
    _, opening = reader(edge)
    another(edge, A)
    another(edge, "c")
    counts = edge.node._desk.hub.usages.of("app").counts
    edge.core(named(edge, opening.req, 51, "axxx"), named(edge, opening.req, 52, "xx"))
    assert counts[OUT_REALTIME] == 2 * 1 + 4 + 2


def test_what_cannot_be_evaluated_is_not_delivered_and_counted(edge: Edge) -> None:
    client, opening = reader(edge, derived("length(headers.n) > `0`"))
    edge.core(edge.record(opening.req, 51, Message(extras={"headers": {"n": 1}}), Message(data="y", extras={"headers": {"n": "1"}})))
    assert told(client) == [(derived("length(headers.n) > `0`"), "y")]
    assert edge.node.stats.filter_errors == 1


# --- position ----------------------------------------------------------------------------------------------------------------------------


def test_the_position_is_told_some_time_after_a_message_that_did_not_pass(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.core(named(edge, opening.req, 51, "x"))
    assert stay(edge, 10, client) == [[]]
    edge.core(named(edge, opening.req, 52, "x"))
    assert stay(edge, 4, client) == [[]]
    moved = {"action": 11, "channel": A, "channelSerial": edge.serial("c", 52), "flags": SUBSCRIBE | RESUMED}
    assert stay(edge, 1.5, client) == [[moved]]
    assert stay(edge, 60, client) == [[]]


def test_it_is_told_only_to_those_whom_no_message_has_told_it(edge: Edge) -> None:
    behind, opening = reader(edge)
    ahead, plain = another(edge, B), another(edge, "c")
    edge.core(named(edge, opening.req, 51, "x"), named(edge, opening.req, 52, "b"))
    got = stay(edge, 16, behind, ahead, plain)
    assert [[each["channelSerial"] for each in messages if each["action"] == 11] for messages in got] == [[edge.serial("c", 52)], [], []]


def test_it_is_told_to_a_publisher_who_does_not_want_its_own(edge: Edge) -> None:
    client, opening = reader(edge, query="key=app.key:secret&v=6&echo=false")
    edge.core(named(edge, opening.req, 51, "x"), named(edge, opening.req, 52, "a", connection=client.session))
    got = stay(edge, 16, client)[0]
    assert [(each["action"], each["channelSerial"]) for each in got] == [(11, edge.serial("c", 52))]


def test_or_after_so_many_records() -> None:
    edge = Edge(limits=EdgeLimits(filter_position_records=3))
    client, opening = reader(edge)
    edge.core(*(named(edge, opening.req, offset, "x") for offset in (51, 52, 53)))
    edge.gets_nothing(client)
    edge.core(named(edge, opening.req, 54, "x"))
    edge.gets(client, action=11, channelSerial=edge.serial("c", 54), flags=SUBSCRIBE | RESUMED)
    edge.gets_nothing(client)


def test_changes_of_presence_count_for_the_position_and_are_not_told(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.core(edge.change(opening.req, 51, client.session, PresenceItem(PresenceAction.ENTER, "ann")))
    edge.gets_nothing(client)
    assert [(each["action"], each["channelSerial"]) for each in stay(edge, 16, client)[0]] == [(11, edge.serial("c", 51))]


def test_params_are_repeated_when_the_position_is_told(edge: Edge) -> None:
    client = edge.connect(capability=ALL)
    opening, _ = edge.attach(client, A, params={"modes": "subscribe"})
    edge.core(named(edge, opening.req, 51, "x"))
    assert [each["params"] for each in stay(edge, 16, client)[0]] == [{"modes": "subscribe"}]


def replayed(edge: Edge, *records: tuple[int, str], head: int, error: ErrorInfo | None = None) -> Client:
    """A client that resumes at 40, when these records have come since."""
    client = edge.connect(capability={"[filter]c": ["subscribe"]})
    edge.sends(client, action=10, channel=A, channelSerial=edge.serial("c", 40))
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", head)))
    (replay,) = edge.take(Open)
    assert (replay.channel, replay.after, replay.witness) == ("c", edge.serial("c", 40), client.session)
    edge.core(*(named(edge, replay.req, offset, names) for offset, names in records), Opened(replay.req, edge.serial("c", head), error))
    return client


def test_a_resume_replays_what_passes_and_ends_at_the_head(edge: Edge) -> None:
    client = replayed(edge, (41, "x"), (42, "xa"), (45, "x"), head=50)
    edge.gets(client, action=11, flags=SUBSCRIBE | RESUMED | BACKLOG, channelSerial=edge.serial("c", 40))
    message = edge.gets(client, action=15, channelSerial=edge.serial("c", 42))
    assert [each["data"] for each in message["messages"]] == ["42a"]
    edge.gets(client, action=11, flags=SUBSCRIBE | RESUMED, channelSerial=edge.serial("c", 50))
    edge.gets_nothing(client)


def test_a_resume_with_nothing_that_passes_is_at_the_head_at_once(edge: Edge) -> None:
    client = replayed(edge, (41, "x"), (45, "x"), head=50)
    edge.gets(client, action=11, flags=SUBSCRIBE | RESUMED, channelSerial=edge.serial("c", 50))
    edge.gets_nothing(client)


def test_a_gap_is_said(edge: Edge) -> None:
    client = replayed(edge, (45, "a"), head=50, error=ErrorInfo.of(90003, "messages expired"))
    edge.gets(client, action=11, code=90003, flags=SUBSCRIBE | BACKLOG)
    edge.gets(client, action=15)


@pytest.mark.parametrize(("steps", "flags", "at"), [(24, SUBSCRIBE | RESUMED | BACKLOG, 40), (23, SUBSCRIBE, 50)])
def test_a_resume_asks_a_filter_of_so_many_messages_at_once(steps: int, flags: int, at: int) -> None:
    """What is held back may be a million of them: 10 s in which nobody else is served, for each ATTACH of a client that means harm."""
    edge = Edge(limits=EdgeLimits(filter_replay_steps=steps))
    client = replayed(edge, (41, "xxxx"), (42, "xxxa"), head=50)  # of three tokens
    attached = edge.gets(client, action=11, flags=flags, channelSerial=edge.serial("c", at))
    assert attached.get("error", {}).get("code") == (None if at == 40 else 90004)
    if at == 40:
        edge.gets(client, action=15)
        edge.gets(client, action=11)
    edge.gets_nothing(client)


def test_a_lost_core_is_no_business_of_those_who_read_through_a_filter() -> None:
    edge = Edge(cores=2)
    client = edge.open()
    on = 1 if edge.sent[1] else 2
    edge.core(edge.admitted(edge.take(Admit, link=on)[0].req, "session001", capability=ALL), link=on)
    edge.gets(client, action=4)
    edge.sends(client, action=10, channel=A)
    at = 1 if any(isinstance(frame, Open) for frame in edge.sent[1]) else 2
    (opening,) = edge.take(Open, link=at)
    edge.core(Opened(opening.req, edge.serial("c", 50)), named(edge, opening.req, 51, "x"), link=at)
    edge.gets(client, action=11)
    edge.link_lost(at)
    (again,) = edge.take(Open, link=3 - at)
    assert (again.channel, again.after) == ("c", edge.serial("c", 51))
    edge.core(Opened(again.req, edge.serial("c", 51)), named(edge, again.req, 52, "a"), link=3 - at)
    assert told(client) == [(A, "52a")]


def test_a_channel_without_readers_is_shut_with_nothing_left(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.core(named(edge, opening.req, 51, "x"))
    edge.sends(client, action=12, channel=A)
    edge.gets(client, action=13, channel=A)
    stay(edge, 60, client)
    assert edge.take(Shut) == [Shut(opening.req)]
    assert (edge.node.channels, edge.node.filters) == (0, 0)


# --- presence ----------------------------------------------------------------------------------------------------------------------------


def members(edge: Edge, fetch: Fetch, *client_ids: str) -> None:
    found = [MemberItem(number, "elsewhere0", who, f"elsewhere0:{number}:0", 0, number) for number, who in enumerate(client_ids)]
    edge.core(Page(fetch.req, 200, calls.encode_members(MemberPage(edge.serial("c", 50), found, None))))


def test_who_reads_through_a_filter_names_nobody_for_the_presence_set(edge: Edge) -> None:
    """The core would refuse to show it to such a witness; it is loaded in the name of the first who may see it."""
    client = edge.connect(capability={"[filter]c": ["subscribe"]})
    opening, attached = edge.attach(client, A, members=2)
    assert attached["flags"] == SUBSCRIBE
    edge.core(edge.change(opening.req, 51, "elsewhere0", PresenceItem(PresenceAction.LEAVE, "ann")))
    assert [message["action"] for message in stay(edge, 30, client)[0]] == [11]  # its position
    assert edge.take(Fetch) == []
    plain = edge.connect(capability=ALL)
    edge.sends(plain, action=10, channel="c")
    edge.gets(plain, action=11, channel="c")
    (fetch,) = edge.take(Fetch)
    assert fetch.session == plain.session
    members(edge, fetch, "bob")
    sync = edge.gets(plain, action=16)
    assert [each["clientId"] for each in sync["presence"]] == ["bob"]
    assert [message for message in client.inbox if message["action"] in (14, 16)] == []


def test_the_set_is_asked_for_in_the_name_of_one_who_waits_beside_it(edge: Edge) -> None:
    through = edge.connect(capability={"[filter]c": ["subscribe"]})
    edge.sends(through, action=10, channel=A)
    plain = edge.connect(capability=ALL)
    edge.sends(plain, action=10, channel="c")
    (opening,) = edge.take(Open)
    assert opening.witness == through.session
    edge.core(Opened(opening.req, edge.serial("c", 50), members=1))
    (fetch,) = edge.take(Fetch)
    assert fetch.session == plain.session


def test_own_members_are_not_told_through_a_filter(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, channel="c")
    edge.core(edge.change(opening.req, 51, client.session, PresenceItem(PresenceAction.ENTER, "ann")))
    edge.gets(client, action=14, channel="c")
    edge.gets_nothing(client)


def test_members_stay_when_a_derived_channel_is_left(edge: Edge) -> None:
    client, opening = reader(edge)
    edge.core(edge.change(opening.req, 51, client.session, PresenceItem(PresenceAction.ENTER, "ann")))
    edge.sends(client, action=12, channel=A)
    edge.gets(client, action=13)
    assert edge.take(Append) == []


def test_a_witness_behind_a_filter_is_followed_by_another_reader(edge: Edge) -> None:
    first, opening = reader(edge)
    plain = another(edge, "c")
    edge.lose(first)
    edge.core(Lost(opening.req, ErrorInfo.of(40160, "no witness")))
    edge.wait(1.5)
    assert [again.witness for again in edge.take(Open)] == [plain.session]
