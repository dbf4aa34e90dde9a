"""The shell around HTTP: what of a request reaches the node, and what of its answer the caller."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from edge.config import EdgeConfig, LinkConfig, Listen
from edge.effects import RestAnswer
from edge.events import Event, RestAsked, RestGone
from edge.io.http import Http, application
from edge.io.process import BadSettings, check
from relay.model.limits import EdgeLimits
from relay.runtime.settings import File, PrivateFile


def ask(
    method: str = "GET",
    path: str = "/time",
    chunks: list[bytes] | None = None,
    *,
    answer: RestAnswer | None = None,
    client: str = "192.0.2.1",
    demo: Path | None = None,
    limits: EdgeLimits | None = None,
    endless: bool = False,
    length: bytes | None = None,
) -> tuple[list[Event], list[Message]]:
    """One request through the ASGI application. Answers the events posted and the messages sent."""
    events: list[Event] = []
    sent: list[Message] = []
    pieces = list(chunks or [b""])

    async def main() -> None:
        def post(event: Event) -> None:
            events.append(event)
            if answer is not None:
                http.answer(answer)

        http = Http(limits or EdgeLimits(), post, tls=True)

        async def receive() -> Message:
            if not pieces:
                await asyncio.Event().wait()  # the caller stays
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces) or endless}

        async def send(message: Message) -> None:
            sent.append(message)

        raw, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": raw,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [
                (b"Content-Type", b"application/json"),
                *((b"x-a", b"1"), (b"x-a", b"2")),
                *([] if length is None else [(b"Content-Length", length)]),
            ],
            "client": (client, 1),
        }
        await application(http, demo)(scope, receive, send)

    asyncio.run(main())
    return events, sent


def test_the_node_gets_the_raw_path_and_the_whole_body() -> None:
    answer = RestAnswer(1, 201, [("content-type", "application/json")], b"{}")
    (event,), sent = ask("POST", "/channels/a%2Fb/messages?x=1", [b"ab", b"cd"], answer=answer)
    assert event == RestAsked(
        1, "POST", "/channels/a%2Fb/messages", "x=1", {"content-type": "application/json", "x-a": "1"}, b"abcd", True, "192.0.2.1"
    )
    assert sent[0]["status"] == 201
    assert dict(sent[0]["headers"]) == {b"content-type": b"application/json", b"content-length": b"2"}
    assert sent[1]["body"] == b"{}"


def test_a_body_is_read_no_further_than_the_node_needs_to_refuse_it() -> None:
    answer = RestAnswer(1, 413, [], b"")
    (event,), _ = ask("POST", "/x", [b"x" * 8] * 100, answer=answer, limits=EdgeLimits(max_frame_bytes=20))
    assert isinstance(event, RestAsked)
    assert len(event.body) == 21


@pytest.mark.parametrize(
    ("path", "length"),
    [("/messages?newBatchResponse=true", 60), ("/messages", 41), ("/messages?newBatchResponse=false", 41), ("/channels/messages", 21)],
)
def test_how_much_is_read_of_a_body_depends_on_the_route(path: str, length: int) -> None:
    limits = EdgeLimits(max_frame_bytes=20, batch_body_bytes=40, connector_body_bytes=80)
    (event,), _ = ask("POST", path, [b"x" * 6] * 10, answer=RestAnswer(1, 201, [], b""), limits=limits)
    assert isinstance(event, RestAsked)
    assert len(event.body) == length


def test_large_bodies_have_their_own_share_and_small_ones_need_none_of_it() -> None:
    limits = EdgeLimits(max_frame_bytes=20, batch_body_bytes=40, large_bodies_bytes=30, large_body_wait_s=0.02)
    answer = RestAnswer(1, 201, [], b"")
    events, sent = ask("POST", "/messages", [b"x"], answer=answer, limits=limits)
    assert (events, sent[0]["status"], dict(sent[0]["headers"])[b"x-ably-errorcode"]) == ([], 503, b"50004")
    events, sent = ask("POST", "/messages", [b"x"], answer=answer, limits=limits, length=b"1")
    assert (len(events), sent[0]["status"]) == (1, 201)


def test_an_answer_that_is_not_taken_is_given_up() -> None:
    async def main() -> None:
        http = Http(EdgeLimits(outbox_age_s=0.05), lambda event: http.answer(RestAnswer(event.call, 200, [], b"x")), tls=True)  # type: ignore[union-attr]

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            await asyncio.Event().wait()

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "client": None}
        await asyncio.wait_for(http(scope, receive, send), 5)

    asyncio.run(main())


def test_bodies_of_all_callers_together_are_bounded() -> None:
    events, sent = ask("POST", "/x", [b"x" * 8] * 100, limits=EdgeLimits(rest_body_bytes=20))
    assert events == []
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"x-ably-errorcode"]) == (503, b"50004")


def test_room_for_bodies_is_given_back() -> None:
    async def main() -> None:
        http = Http(EdgeLimits(rest_body_bytes=20), lambda event: http.answer(RestAnswer(event.call, 201, [], b"")), tls=True)  # type: ignore[union-attr]
        statuses: list[int] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x" * 15, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "client": None}
        for _ in range(3):
            await http(scope, receive, send)
        assert statuses == [201, 201, 201]

    asyncio.run(main())


def test_a_body_that_does_not_arrive_is_refused_in_the_form_of_all_refusals() -> None:
    events, sent = ask("POST", "/x", [b"x", b""], limits=EdgeLimits(rest_body_wait_s=0.05), endless=True)
    headers = dict(sent[0]["headers"])
    assert (events, sent[0]["status"]) == ([], 408)
    assert (headers[b"content-type"], headers[b"x-ably-errorcode"]) == (b"application/json", b"40000")


@pytest.mark.parametrize("target", ["https://edge.test/time", "*", "//time", ""])
@pytest.mark.parametrize("with_demo", [False, True])
def test_every_form_of_request_target_reaches_the_node(target: str, with_demo: bool, tmp_path: Path) -> None:
    (event,), _ = ask("OPTIONS", target, answer=RestAnswer(1, 204, [], b""), demo=tmp_path if with_demo else None)
    assert isinstance(event, RestAsked)
    assert event.raw_path == target


def test_a_204_has_neither_body_nor_length() -> None:
    _, sent = ask("DELETE", "/apps/x", answer=RestAnswer(1, 204, [], b""))
    assert sent[0]["status"] == 204
    assert b"content-length" not in dict(sent[0]["headers"])


def test_a_head_has_the_length_and_no_body() -> None:
    _, sent = ask("HEAD", "/time", answer=RestAnswer(1, 200, [], b"[1]"))
    assert dict(sent[0]["headers"])[b"content-length"] == b"3"
    assert sent[1]["body"] == b""


def test_a_node_that_does_not_answer_is_told_that_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.io.http._GRACE_S", 0.0)
    events, sent = ask(limits=EdgeLimits(publish_wait_s=0.05))
    assert events[1] == RestGone(1)
    assert sent[0]["status"] == 503


def test_the_demo_is_for_this_machine_only(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>board</h1>")
    _, sent = ask("GET", "/demo/index.html", client="127.0.0.1", demo=tmp_path)
    assert sent[0]["status"] == 200
    events, sent = ask("GET", "/demo/index.html", demo=tmp_path)
    assert (sent[0]["status"], events) == (404, [])


def config(**changes: Any) -> EdgeConfig:
    file = Path("/x")
    link = LinkConfig(cores=["c:1"], trust_domain="d", certificate=File(file), private_key=PrivateFile(file), ca=File(file))
    listen = Listen(certificate=File(file), private_key=PrivateFile(file))
    return EdgeConfig(**{"site": "s", "node": "n", "link": link, "listen": listen, **changes})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sandbox": True}, "sandbox"),
        ({"demo": "/tmp"}, "demo"),
        ({"listen": Listen()}, "listen"),
        (
            {"link": LinkConfig(cores=["c"], trust_domain="d", certificate=File("/x"), private_key=PrivateFile("/x"), ca=File("/x"))},
            "link.cores",
        ),
        ({"listen": Listen(plain=True, certificate=File("/x"))}, "listen.plain"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], field: str) -> None:
    check(config())
    with pytest.raises(BadSettings, match=f"^{field}:"):
        check(config(**changes))
