"""`POST /messages` and `GET /presence`: results complete and in the order of the request, order within a channel, bounded work.
Ably protocol docs, 8.4 and 12.4."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.batch import parse
from edge.events import RestGone
from edge.io.http import LargeBodies
from edge.presence_batch import channels_asked
from edge.rest import body_limit
from relay.link import calls
from relay.link.frames import Admit, Append, Fetch, Page, Unknown
from relay.model.errors import RelayError
from relay.model.limits import EdgeLimits
from tests.unit.edge.playbook import Edge

V2, V5 = {"x-ably-version": "2"}, {"x-ably-version": "5"}
CONNECTOR = "newBatchResponse=true"
ALL = {"*": ["*"]}


def batch(edge: Edge, body: Any, *, query: str = "", headers: dict[str, str] | None = None, **rights: Any) -> int:
    """A batch of a caller whom the core has admitted."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    call = edge.asks("POST", "/messages", raw, query=query, headers=V5 if headers is None else headers)
    for asked in edge.take(Admit):
        edge.core(edge.admitted(asked.req, f"rest{asked.req:06d}", key="", **{"capability": ALL, **rights}))
    return call


def take_in(edge: Edge, *, first: int = 1) -> list[Append]:
    """The core takes in all that it is sent, until no more comes."""
    taken: list[Append] = []
    while appends := edge.take(Append):
        for append in appends:
            edge.appended(append, first + len(taken))
            taken.append(append)
    return taken


def spec(channels: str | list[str], *data: str) -> dict[str, Any]:
    return {"channels": channels, "messages": [{"data": each} for each in data]}


# --- forms of the answer -----------------------------------------------------------------------------------------------------------------


def test_rsc22_an_array_of_specs_gets_one_result_each_in_their_order(edge: Edge) -> None:
    rights = {"channel0": ["publish"], "channel4": ["publish"]}
    call = batch(edge, [spec(["channel0", "channel3"], "1", "2"), spec(["channel4", "channel5"], "3")], capability=rights)
    appends = take_in(edge)
    assert [(a.channel, [m.data for m in a.messages]) for a in appends] == [("channel0", ["1", "2"]), ("channel4", ["3"])]
    status, body, headers = edge.answer(call)
    assert (status, headers["content-type"]) == (201, "application/json")
    assert [(each["successCount"], each["failureCount"]) for each in body] == [(1, 1), (1, 1)]
    done, refused = body[0]["results"]
    assert done == {
        "channel": "channel0",
        "messageId": appends[0].id[2:],
        "serials": [f"{edge.serial('channel0', 1)}:00{index}" for index in range(2)],
    }
    assert (refused["channel"], refused["error"]["code"], refused["error"]["statusCode"]) == ("channel3", 40160, 401)
    assert refused.keys() == {"channel", "error"}
    assert [each["channel"] for each in body[1]["results"]] == ["channel4", "channel5"]


def test_a_bare_spec_gets_one_object(edge: Edge) -> None:
    call = batch(edge, spec("c", "x"))
    take_in(edge)
    assert edge.answer(call)[1]["results"][0]["channel"] == "c"


@pytest.mark.parametrize("body", [spec(["a", "b"], "x"), [spec("a", "x"), spec("b", "y")]])
def test_version_2_gets_a_flat_array(edge: Edge, body: Any) -> None:
    call = batch(edge, body, headers=V2)
    first, second = take_in(edge)
    status, answer, _ = edge.answer(call)
    assert (status, answer) == (201, [{"channel": "a", "messageId": first.id[2:]}, {"channel": "b", "messageId": second.id[2:]}])


def test_version_2_is_told_of_some_failures_by_400_and_40020(edge: Edge) -> None:
    call = batch(edge, {"channels": ["good", "[invalid", ""], "messages": {"data": "foo"}}, headers=V2)
    take_in(edge)
    status, answer, headers = edge.answer(call)
    assert (status, answer["error"]["code"], answer["error"]["statusCode"], headers["x-ably-errorcode"]) == (400, 40020, 400, "40020")
    assert [(each["channel"], each.get("error", {}).get("code")) for each in answer["batchResponse"]] == [
        ("good", None),
        ("[invalid", 40010),
        ("", 40010),
    ]


def test_version_2_names_the_clients_own_id(edge: Edge) -> None:
    call = batch(edge, {"channels": "c", "messages": {"data": "x", "id": "mine:0"}}, headers=V2)
    (append,) = take_in(edge)
    assert append.id == "i:mine:0"
    assert edge.answer(call)[1] == [{"channel": "c", "messageId": "mine:0"}]


def test_a_connector_gets_the_new_form_whatever_its_version_and_never_400_for_a_part(edge: Edge) -> None:
    call = batch(edge, [spec("[bad", "x"), {"channels": ["c"], "messages": 7}, spec("ok", "y")], headers=V2, query=CONNECTOR)
    take_in(edge)
    status, body, headers = edge.answer(call)
    assert (status, headers["content-type"]) == (201, "application/json")
    assert [each["failureCount"] for each in body] == [1, 1, 0]
    for each in body[:2]:
        (result,) = each["results"]
        assert result["channel"] in ("[bad", "c")
        assert result["error"].keys() >= {"code", "statusCode", "message"}


def test_a_caller_that_names_no_version_gets_the_new_form(edge: Edge) -> None:
    call = batch(edge, [spec("c", "x")], headers={})
    take_in(edge)
    assert edge.answer(call)[1][0]["successCount"] == 1


def test_even_if_all_failed_it_is_201(edge: Edge) -> None:
    call = batch(edge, [spec(["a", "b"], "x")], capability={"c": ["publish"]})
    status, body, _ = edge.answer(call)
    assert (status, body[0]["successCount"], body[0]["failureCount"]) == (201, 0, 2)


def test_msgpack_in_and_out(edge: Edge) -> None:
    kind = "application/x-msgpack"
    raw = msgspec.msgpack.encode([{"channels": ["c"], "messages": [{"data": b"\x00\xff"}]}])
    call = batch(edge, raw, headers={**V5, "content-type": kind, "accept": kind})
    (append,) = take_in(edge)
    assert append.messages[0].data == b"\x00\xff"
    status, body, headers = edge.answer(call)
    assert (status, headers["content-type"], body[0]["successCount"]) == (201, kind, 1)


def test_12_4_what_the_connector_sends(edge: Edge) -> None:
    """JSON with the clientId in a header, one message and one channel to a spec, names and extras as records had them."""
    names = ["user 1", "a/b%+c", "q?#;", '"e\u0301"', "user 1"]
    extras = {"headers": {"n": "12"}, "kafka": {"key": "a2V5"}}
    body = [{"channels": [name], "messages": [{"data": "AAH/", "encoding": "json/base64", "extras": extras}]} for name in names]
    body[3]["messages"] = [{}]
    claimed = base64.b64encode(b"kafka-connect-ably-example").decode()
    call = edge.asks("POST", "/messages", msgspec.json.encode(body), query=CONNECTOR, headers={**V5, "x-ably-clientid": claimed})
    (asked,) = edge.take(Admit)
    assert asked.client_id == "kafka-connect-ably-example"
    edge.core(edge.admitted(asked.req, "rest000001", key="", client_id=asked.client_id))
    appends = take_in(edge)
    assert [append.channel for append in appends] == names
    for append in appends:
        assert [message.client_id for message in append.messages] == ["kafka-connect-ably-example"]
    assert (appends[0].messages[0].data, appends[0].messages[0].encoding) == (b"\x00\x01\xff", "json")
    assert appends[0].messages[0].extras == extras
    status, answer, _ = edge.answer(call)
    assert (status, [each["failureCount"] for each in answer]) == (201, [0] * 5)
    assert [each["results"][0]["channel"] for each in answer] == names


# --- refused as a whole ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 40001),
        (b"{", 40001),
        (b"7", 40000),
        (b"[]", 40000),
        (b"[[]]", 40000),
        (b'{"channels":"c"}', 40000),
        (b'{"channels":[],"messages":[]}', 40000),
        (b'{"channels":[7],"messages":[]}', 40000),
        (b'[{"messages":[]}]', 40000),
    ],
)
def test_what_is_no_batch_is_refused_and_nothing_is_published(edge: Edge, body: bytes, code: int) -> None:
    status, answer, headers = edge.answer(batch(edge, body))
    assert (status, answer["error"]["code"], headers["x-ably-errorcode"]) == (400, code, str(code))
    assert edge.take(Append) == []


def test_bad_credentials_fail_the_whole_request(edge: Edge) -> None:
    call = edge.asks("POST", "/messages", msgspec.json.encode([spec("c", "x")]), headers=V5)
    edge.refused(edge.take(Admit)[0].req, 40101)
    assert edge.answer(call)[0] == 401


def test_more_than_a_hundred_channels(edge: Edge) -> None:
    names = [f"c{number}" for number in range(101)]
    status, body, _ = edge.answer(batch(edge, [spec(names, "x")]))
    assert (status, body["error"]["code"]) == (400, 90010)
    assert edge.take(Append) == []
    call = batch(edge, [spec(name, "x") for name in [*names, "c0"]], query=CONNECTOR)
    assert len(take_in(edge)) == 101
    status, body, _ = edge.answer(call)
    assert (status, [n for n, each in enumerate(body) if each["failureCount"]]) == (201, [100])
    assert body[100]["results"][0]["error"]["code"] == 90010


def test_a_name_given_twice_is_published_on_once(edge: Edge) -> None:
    call = batch(edge, [spec(["a", "a", "b"], "x")])
    assert [append.channel for append in take_in(edge)] == ["a", "b"]
    assert edge.answer(call)[1][0]["successCount"] == 2


def test_limits_of_publishes_and_messages() -> None:
    edge = Edge(limits=EdgeLimits(batch_publishes=3, batch_messages=5))
    assert edge.answer(batch(edge, [spec(["a", "b"], "x"), spec(["a", "b"], "x")]))[1]["error"]["code"] == 40034
    call = batch(edge, [spec("a", "1", "2", "3"), spec("a", "4", "5", "6"), spec("b", "7")])
    assert len(take_in(edge)) == 1
    codes = [each["results"][0].get("error", {}).get("code") for each in edge.answer(call)[1]]
    assert codes == [None, 40034, 40034]


def test_a_spec_of_a_thousand_messages_at_most(edge: Edge) -> None:
    call = batch(edge, [{"channels": "a", "messages": [{}] * 1001}, {"channels": "a", "messages": [{}] * 1000}])
    (append,) = take_in(edge)
    assert len(append.messages) == 1000
    first, second = edge.answer(call)[1]
    assert (first["results"][0]["error"]["code"], second["failureCount"]) == (40034, 0)


def test_a_message_that_is_too_large_fails_alone(edge: Edge) -> None:
    call = batch(edge, [spec("a", "x" * 70_000), spec("a", "y"), spec("a", "z" * 600_000)])
    assert [append.messages[0].data for append in take_in(edge)] == ["y"]
    assert [each["results"][0].get("error", {}).get("code") for each in edge.answer(call)[1]] == [40009, None, 40009]


def test_how_long_a_body_may_be() -> None:
    limits = EdgeLimits()
    assert body_limit("POST", "/messages", "", limits) == 2 * 1024 * 1024
    assert body_limit("POST", "/messages", f"a=b&{CONNECTOR}", limits) == 8 * 1024 * 1024
    for method, path in (("GET", "/messages"), ("POST", "/channels/messages/messages"), ("POST", "/messages/"), ("POST", "/%ff")):
        assert body_limit(method, path, CONNECTOR, limits) == limits.max_frame_bytes


def test_a_body_that_is_too_long_is_413(edge: Edge) -> None:
    body = b'[{"channels":"c","messages":{"data":"' + b"x" * 2_097_152 + b'"}}]'
    status, answer, _ = edge.answer(edge.asks("POST", "/messages", body, headers=V5))
    assert (status, answer["error"]["code"]) == (413, 40009)
    call = batch(edge, body, query=CONNECTOR)
    assert edge.answer(call)[1][0]["results"][0]["error"]["code"] == 40009


# --- bounded and in order ----------------------------------------------------------------------------------------------------------------


def test_only_so_many_are_under_way_at_once(edge: Edge) -> None:
    limits = EdgeLimits()
    call = batch(edge, [spec(f"c{n % 50}", f"{n}") for n in range(300)])
    seen: list[str] = []
    under_way = edge.take(Append)
    while under_way:
        assert len(under_way) <= limits.batch_window_publishes
        append = under_way.pop(0)
        seen.append(str(append.messages[0].data))
        edge.appended(append, len(seen))
        under_way += edge.take(Append)
    assert seen == [str(n) for n in range(300)]
    assert len(edge.answer(call)[1]) == 300


def test_large_publishes_are_fewer_at_once(edge: Edge) -> None:
    batch(edge, [spec([f"c{n}" for n in range(100)], "x" * 60_000)])
    assert len(edge.take(Append)) == EdgeLimits().batch_window_bytes // 60_000 + 1


def test_a_batch_of_failures_takes_its_time_in_pieces() -> None:
    edge = Edge(limits=EdgeLimits(batch_window_publishes=10))
    call = batch(edge, [spec(f"c{n}", "x") for n in range(25)], capability={"d": ["publish"]})
    assert call not in edge.answers
    edge.wait(0.8)
    assert edge.answer(call)[1][24]["failureCount"] == 1


def test_what_the_core_has_no_room_for_is_sent_again_in_order(edge: Edge) -> None:
    call = batch(edge, [spec("a", "1"), spec("a", "2"), spec("b", "3")])
    first, second, third = edge.take(Append)
    edge.refused(first.req, 50003)
    edge.refused(second.req, 50003)
    edge.appended(third, 1)
    assert edge.take(Append) == []
    edge.wait(0.5)
    again = edge.take(Append)
    assert [(append.id, append.fresh) for append in again] == [(first.id, True), (second.id, True)]
    for offset, append in enumerate(again):
        edge.appended(append, 10 + offset)
    assert [each["failureCount"] for each in edge.answer(call)[1]] == [0, 0, 0]


def test_what_others_on_its_channel_have_overtaken_is_not_sent_again(edge: Edge) -> None:
    call = batch(edge, [spec("a", "1"), spec("a", "2")])
    first, second = edge.take(Append)
    edge.refused(first.req, 50003)
    edge.appended(second, 7)
    edge.wait(1.0)
    assert edge.take(Append) == []
    assert [each["results"][0].get("error", {}).get("code") for each in edge.answer(call)[1]] == [50003, None]


def test_what_waited_behind_something_that_was_given_up_goes_before_what_comes_later() -> None:
    edge = Edge(limits=EdgeLimits(batch_window_publishes=4))
    call = batch(edge, [spec("a", "0"), spec("a", "1"), spec("a", "2"), spec("b", "x"), spec("a", "3"), spec("a", "4")])
    first, second, _, other = edge.take(Append)
    edge.refused(first.req, 50003)
    edge.appended(other, 1)
    assert edge.take(Append) == []
    edge.appended(second, 2)  # now the first is given up
    assert [append.messages[0].data for append in edge.take(Append)] == ["3", "4"]
    edge.post(RestGone(call))


def test_an_unknown_outcome_is_told_and_not_repeated(edge: Edge) -> None:
    call = batch(edge, [spec("a", "1"), spec("a", "2")])
    first, second = edge.take(Append)
    edge.core(Unknown(first.req))
    edge.appended(second, 7)
    (failed, done) = edge.answer(call)[1]
    assert (failed["results"][0]["error"]["code"], failed["results"][0]["error"]["statusCode"]) == (50003, 503)
    assert done["successCount"] == 1


def test_results_are_complete_when_time_is_up() -> None:
    edge = Edge(limits=EdgeLimits(batch_window_publishes=2))
    call = batch(edge, [spec("a", "1"), spec("b", "2"), spec("c", "3")], query=CONNECTOR)
    first, second = edge.take(Append)
    edge.appended(first, 1)
    assert len(edge.take(Append)) == 1
    edge.wait(9.5)
    status, body, _ = edge.answer(call)
    assert (status, [each["failureCount"] for each in body]) == (201, [0, 1, 1])
    assert [each["results"][0]["channel"] for each in body] == ["a", "b", "c"]
    edge.appended(second, 2)  # nobody waits for it any more
    assert edge.node.unanswered == 1


def test_no_link_at_all_is_told_by_each_result(edge: Edge) -> None:
    call = batch(edge, [spec("a", "1")])
    (append,) = edge.take(Append)
    edge.appended(append, 1)
    edge.answer(call)
    edge.link_lost()
    call = edge.asks("POST", "/messages", msgspec.json.encode([spec("a", "2")]), query=CONNECTOR, headers=V5)
    edge.wait(9.5)
    status, body, _ = edge.answer(call)
    assert (status, body[0]["results"][0]["error"]["code"]) == (201, 50003)
    assert edge.node.unanswered == 0


def test_a_lost_link_sends_again_under_the_same_ids() -> None:
    edge = Edge(cores=2)
    call = edge.asks("POST", "/messages", msgspec.json.encode([spec([f"c{n}" for n in range(20)], "x")]), headers=V5)
    link = next(link for link in (1, 2) if edge.sent[link])
    edge.core(edge.admitted(edge.take(Admit, link=link)[0].req, "rest000001", key=""), link=link)
    mine, others = edge.take(Append, link=1), edge.take(Append, link=2)
    assert len(mine) + len(others) == 20
    edge.link_lost(1)
    again = edge.take(Append, link=2)
    assert {append.id for append in again} == {append.id for append in mine}
    for offset, append in enumerate([*others, *again]):
        edge.appended(append, offset, link=2)
    assert edge.answer(call)[1][0]["successCount"] == 20


def test_a_caller_that_went_away_has_no_more_published(edge: Edge) -> None:
    call = batch(edge, [spec(f"c{n}", "x") for n in range(100)])
    before = edge.take(Append)
    edge.post(RestGone(call))
    for offset, append in enumerate(before):
        edge.appended(append, offset)
    edge.wait(12)
    assert (edge.take(Append), call in edge.answers, edge.node.unanswered) == ([], False, 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_core_answers_results_are_complete_and_channels_in_order(data: st.DataObject) -> None:
    """Appends are taken in or refused in the order of their link; answers come in any order between channels."""
    edge = Edge(limits=EdgeLimits(batch_window_publishes=data.draw(st.integers(1, 8))))
    specs = data.draw(st.lists(st.lists(st.sampled_from(["a", "b", "c", "[no"]), min_size=1, max_size=4), min_size=1, max_size=12))
    call = batch(edge, [spec(channels, str(number)) for number, channels in enumerate(specs)])
    log: list[tuple[str, int]] = []
    waiting: list[Append] = []
    for _ in range(400):
        waiting += edge.take(Append)
        if call in edge.answers:
            break
        if not waiting:
            edge.wait(0.25)
            continue
        channel = data.draw(st.sampled_from(sorted({append.channel for append in waiting})))
        append = next(each for each in waiting if each.channel == channel)
        waiting.remove(append)
        match data.draw(st.sampled_from(["taken", "taken", "no room", "unknown"])):
            case "taken":
                log.append((channel, int(str(append.messages[0].data))))
                edge.appended(append, len(log))
            case "no room":
                edge.refused(append.req, 50003)
            case _:
                edge.core(Unknown(append.req))
    status, body, _ = edge.answer(call)
    assert (status, len(body)) == (201, len(specs))
    done = set()
    for number, (channels, each) in enumerate(zip(specs, body, strict=True)):
        assert [result["channel"] for result in each["results"]] == list(dict.fromkeys(channels))
        assert each["successCount"] + each["failureCount"] == len(each["results"])
        assert each["failureCount"] == sum("error" in result for result in each["results"])
        done |= {(result["channel"], number) for result in each["results"] if "error" not in result}
    assert done == set(log)
    for channel in "abc":
        numbers = [number for name, number in log if name == channel]
        assert numbers == sorted(set(numbers))
    assert edge.node.unanswered == 0


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_bytes_are_a_batch_or_refused(body: bytes, msgpack: bool, lenient: bool) -> None:
    try:
        parsed = parse(body, EdgeLimits(), msgpack=msgpack, lenient=lenient)
    except RelayError:
        return
    assert parsed.specs
    assert all(channels for channels, _ in parsed.specs)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["channels", "messages", "data", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(_json)
def test_any_json_is_answered(body: Any) -> None:
    edge = Edge()
    call = batch(edge, body, query=CONNECTOR)
    take_in(edge)
    edge.wait(1.0)
    status, answer, _ = edge.answer(call)
    if status == 201:
        results = answer if isinstance(answer, list) else [answer]
        assert all(each["results"] and each["successCount"] + each["failureCount"] == len(each["results"]) for each in results)
    else:
        assert (status, answer["error"]["statusCode"]) == (400, 400)


# --- presence ----------------------------------------------------------------------------------------------------------------------------


def presence(edge: Edge, query: str, **rights: Any) -> int:
    call = edge.asks("GET", "/presence", query=query, headers=V5)
    for asked in edge.take(Admit):
        edge.core(edge.admitted(asked.req, f"rest{asked.req:06d}", key="", **{"capability": ALL, **rights}))
    return call


def set_of(req: int, *members: str, after: int | None = None, start: int = 1) -> Page:
    items = [calls.MemberItem(start + n, "conn", name, f"conn:0:{n}", 1_000, 5, data="d") for n, name in enumerate(members)]
    return Page(req, 200, calls.encode_members(calls.MemberPage("s", items, after)))


def asked_for(fetch: Fetch) -> calls.Members:
    call = calls.decode(fetch.what, fetch.body)
    assert isinstance(call, calls.Members)
    return call


def test_rsc24_presence_of_several_channels(edge: Edge) -> None:
    rights = {"channel0": ["publish"], "channel4": ["presence"], "empty": ["subscribe"]}
    call = presence(edge, "channels=channel0%2Cchannel4%2Cempty", capability=rights)
    first, second = edge.take(Fetch)
    assert (asked_for(first).channel, asked_for(first).fresh, asked_for(second).channel) == ("channel4", True, "empty")
    edge.core(set_of(second.req))
    edge.core(set_of(first.req, "ann", after=1))
    (further,) = edge.take(Fetch)
    assert asked_for(further).after == 1
    edge.core(set_of(further.req, "bob", start=2))
    status, body, _ = edge.answer(call)
    assert (status, body["successCount"], body["failureCount"]) == (200, 2, 1)
    refused, full, empty = body["results"]
    assert (refused["channel"], refused["error"]["code"], refused["error"]["statusCode"]) == ("channel0", 40160, 401)
    assert [(member["clientId"], member["action"]) for member in full["presence"]] == [("ann", 1), ("bob", 1)]
    assert empty == {"channel": "empty", "presence": []}


def test_presence_a_few_channels_at_a_time_and_what_fails_fails_alone(edge: Edge) -> None:
    call = presence(edge, "channels=" + ",".join(f"c{n}" for n in range(20)))
    fetches = edge.take(Fetch)
    assert len(fetches) == EdgeLimits().batch_window_reads
    edge.refused(fetches[0].req, 42910)
    while fetches:
        edge.core(set_of(fetches.pop().req, "ann"))
        fetches += edge.take(Fetch)
    body = edge.answer(call)[1]
    assert (body["successCount"], body["failureCount"]) == (19, 1)
    assert body["results"][0]["error"]["code"] == 42910


def test_presence_that_is_too_large_or_too_late() -> None:
    edge = Edge(limits=EdgeLimits(batch_presence_bytes=60))
    call = presence(edge, "channels=a,b,c")
    first, second, _ = edge.take(Fetch)
    edge.core(set_of(first.req, "ann"))
    edge.core(set_of(second.req, "bob"))
    edge.wait(9.5)
    codes = [each.get("error", {}).get("code") for each in edge.answer(call)[1]["results"]]
    assert codes == [None, 40009, 50003]


def test_presence_goes_on_over_another_link() -> None:
    edge = Edge(cores=2)
    call = edge.asks("GET", "/presence", query="channels=" + ",".join(f"c{n}" for n in range(6)), headers=V5)
    link = next(link for link in (1, 2) if edge.sent[link])
    edge.core(edge.admitted(edge.take(Admit, link=link)[0].req, "rest000001", key=""), link=link)
    edge.link_lost(1)
    for fetch in edge.take(Fetch, link=2):
        edge.core(set_of(fetch.req), link=2)
    assert edge.answer(call)[1]["successCount"] == 6


def test_presence_of_nothing_of_too_much_and_of_a_caller_that_left(edge: Edge) -> None:
    assert edge.answer(presence(edge, ""))[1]["error"]["code"] == 40000
    assert edge.answer(presence(edge, "channels=" + ",".join(f"c{n}" for n in range(101))))[1]["error"]["code"] == 90010
    call = presence(edge, "channels=a,b")
    fetches = edge.take(Fetch)
    edge.post(RestGone(call))
    for fetch in fetches:
        edge.core(set_of(fetch.req))
    assert call not in edge.answers


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("channels=a,b,a", ["a", "b"]),
        ("x=1&channels=a%2Cb", ["a", "b"]),
        ("channels=a%2Cb,c%20d", ["a,b", "c d"]),
        ("channels=%E4%BD%A0", ["你"]),
    ],
)
def test_how_channels_are_named(query: str, names: list[str]) -> None:
    assert channels_asked(query, EdgeLimits()) == names


# --- room for large bodies ---------------------------------------------------------------------------------------------------------------


def test_large_bodies_wait_for_room_and_no_address_takes_all() -> None:
    async def main() -> None:
        bodies = LargeBodies(EdgeLimits(large_bodies_bytes=100, large_body_wait_s=5.0))
        assert await bodies.enter("x", 40)
        second = asyncio.ensure_future(bodies.enter("x", 40))  # more than its half
        await asyncio.sleep(0)
        assert await bodies.enter("y", 50)
        third = asyncio.ensure_future(bodies.enter("z", 50))
        await asyncio.sleep(0)
        assert not second.done()
        assert not third.done()
        bodies.leave("y", 50)
        assert await third
        bodies.leave("x", 40)
        assert await second
        bodies.leave("x", 40)
        bodies.leave("z", 50)

    asyncio.run(main())


def test_a_large_body_does_not_wait_for_ever_and_a_caller_that_leaves_gives_its_place_up() -> None:
    async def main() -> None:
        bodies = LargeBodies(EdgeLimits(large_bodies_bytes=100, large_body_wait_s=0.02))
        assert await bodies.enter("x", 100)
        assert not await bodies.enter("y", 10)
        waiting = asyncio.ensure_future(bodies.enter("z", 10))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        bodies.leave("x", 100)
        assert await bodies.enter("y", 50)

    asyncio.run(main())
