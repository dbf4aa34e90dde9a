"""REST over the edge, as a pure part: routing on the raw path, and what each route does. Source: Ably protocol docs, 8 and 14.

Paths are routed before they are decoded: a channel's name may contain an encoded `/`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote

import msgspec

from edge import history, presence_set, rest_publish, stats
from edge.ably.codec import Malformed, decode_body, encode_body, error_shape
from edge.ably.connect import Credential, credential_of, parse_query, protocol_version
from edge.admission import Admission
from edge.batch import FOR_CONNECTORS, Batch, parse
from edge.connection import presentable
from edge.desk import Desk
from edge.effects import RestAnswer
from edge.events import RestAsked
from edge.hub import PendingAppend
from edge.links import Session
from edge.presence_batch import SHOW_MEMBERS, PresenceBatch, SetRead, channels_asked
from edge.turn import Timed
from relay.link import calls
from relay.link.frames import Admit, Admitted, Fetch, Page
from relay.model.capability import Operation
from relay.model.channel import METACHANNELS, log_key, parse_channel
from relay.model.credentials import client_id_of_header
from relay.model.errors import ErrorInfo, RelayError
from relay.model.limits import EdgeLimits
from relay.model.occupancy import details
from relay.model.serials import message_serial
from relay.model.stats import OUT_REST, OUT_REST_PRESENCE

JSON = "application/json"
MSGPACK = "application/x-msgpack"
_GRANT_MARGIN_MS = 10_000
"""A remembered grant is not used so close to its end."""

CORS = (
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "Link, X-Ably-ErrorCode, X-Ably-ErrorMessage, X-Ably-ServerId, Content-Type"),
)
"""On every answer."""
ALLOWED = "authorization, content-type, x-ably-version, ably-agent, x-ably-clientid, x-ably-lib, x-ably-messageid, x-ably-name"


def error_answer(error: ErrorInfo, more: Mapping[str, Any], *, msgpack: bool) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """The body of a refusal, and the headers that say the same."""
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in error.message)
    return encode_body({"error": error_shape(error), **more}, msgpack=msgpack), (
        ("x-ably-errorcode", str(error.code)),
        ("x-ably-errormessage", text),
    )


def answers_msgpack(headers: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """`Accept` (the first supported wins), else `format`, else JSON."""
    for part in headers.get("accept", "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind == MSGPACK:
            return True
        if kind == JSON:
            return False
    return params.get("format") == "msgpack"


class RestCall(Timed):
    """One request until its answer."""

    __slots__ = (
        *("at", "batch", "members", "query", "reads"),
        *("address", "admission", "append", "body", "call", "client_id", "credential", "desk", "headers", "late", "messages", "msgpack"),
        *("name", "over", "params", "publish_id", "read", "rest", "segments", "session", "supplied", "then", "tls", "waits_for"),
    )

    def __init__(self, rest: Rest, event: RestAsked) -> None:
        self.rest = rest
        self.desk = rest.desk
        self.call = event.call
        self.at = rest.desk.turn.now
        self.query = event.query
        """As it came."""
        self.headers = event.headers
        self.body = event.body
        self.tls = event.tls
        self.address = event.address
        self.params: dict[str, str] = {}
        self.segments: list[str] = []
        self.msgpack = False
        self.over = False
        self.session: Session | None = None
        self.credential: Credential | None = None
        self.client_id: str | None = None
        self.admission: Admission | None = None
        self.then: Callable[[RestCall], None] | None = None
        self.waits_for: bytes | int | None = None
        self.append: PendingAppend | None = None
        self.publish_id = ""
        self.name = ""
        self.read: tuple[str, calls.Read | calls.Stats] | None = None
        """The read that it is, by its name on the link."""
        self.members: list[calls.MemberItem] = []
        """Of a presence set, what is there so far."""
        self.batch: Batch | PresenceBatch | None = None
        self.reads: set[int] = set()
        """Unanswered questions of a batch."""
        self.late = ErrorInfo.of(50003, "the request could not be answered in time", 503)

    # --- answers ---------------------------------------------------------------------------------------------------------------------

    def answer(self, status: int, value: Any) -> None:
        self.answer_raw(status, encode_body(value, msgpack=self.msgpack), MSGPACK if self.msgpack else JSON)

    def answer_raw(self, status: int, body: bytes, kind: str, extra: tuple[tuple[str, str], ...] = ()) -> None:
        """Exactly once."""
        if self.over:
            return
        self.rest.close(self)
        if self.session is not None:
            self.desk.usages.answered(self.session.app, status)
        headers = [("content-type", kind)] if body or status != 204 else []
        headers += [("x-ably-serverid", self.desk.server_id), *CORS, *extra]
        self.desk.turn.effects.append(RestAnswer(self.call, status, headers, body))

    def fail(self, error: ErrorInfo) -> None:
        if self.over:
            return
        self.fail_with(error, {})

    def fail_with(self, error: ErrorInfo, more: dict[str, Any]) -> None:
        """`more` stands beside the error in the body."""
        self.desk.turn.stats.refusals[error.code] += 1
        body, extra = error_answer(error, more, msgpack=self.msgpack)
        self.answer_raw(error.status_code, body, MSGPACK if self.msgpack else JSON, extra)

    def wake(self) -> None:
        """Time is up."""
        if self.batch is not None:
            self.batch.expire()
            return
        self.fail(self.late if self.desk.links.by_id else ErrorInfo.of(50320, "this server has no connection to its core"))

    # --- credentials -----------------------------------------------------------------------------------------------------------------

    def present(self) -> Credential | None:
        """The credential and the claimed clientId of the request. Raises RelayError."""
        credential = credential_of(self.params, self.headers)
        if credential is not None:
            presentable(credential, self.desk, tls=self.tls, realtime=False)
        header = self.headers.get("x-ably-clientid")
        if header is not None:
            self.client_id = client_id_of_header(header)
            if not self.client_id or self.client_id == "*":
                raise RelayError(40012, "invalid clientId")
        elif self.params.get("clientId"):
            self.client_id = self.params["clientId"]
            if self.client_id == "*":
                raise RelayError(40012, "invalid clientId")
        return credential

    def with_session(self, then: Callable[[RestCall], None]) -> None:
        """Go on as whoever the credential says, once a core has said so. Raises RelayError."""
        credential = self.present()
        if credential is None:
            raise RelayError(40101, "no credentials: send an Authorization header, or a key or token in the query")
        self.credential = credential
        self.then = then
        self.rest.admit(self)

    def go_on(self, session: Session) -> None:
        self.session = session
        self.desk.usages.admitted(session)
        assert self.then is not None, "it waits for a session"
        try:
            self.then(self)
        except RelayError as error:
            self.fail(error.info)

    # --- a publish -------------------------------------------------------------------------------------------------------------------

    def appended(self, append: PendingAppend, serial: str) -> None:
        self.append = None
        count = len(append.frame.messages)
        serials = [message_serial(serial, index) for index in range(count)]
        self.answer(201, {"channel": self.name, "messageId": self.publish_id, "serials": serials})

    def append_refused(self, append: PendingAppend, error: ErrorInfo) -> None:
        self.append = None
        self.fail(error if error.code != 50003 else ErrorInfo.of(50003, error.message, 503))

    def append_unknown(self, append: PendingAppend) -> None:
        """503: SDKs try again, under the same id."""
        self.append = None
        self.fail(ErrorInfo.of(50003, "the outcome of the publish is not known; try again under the same message id", 503))


class _Asking:
    """One Admit on behalf of all calls that present the same credential at the same time."""

    __slots__ = ("admission", "calls", "digest", "frame", "rest")

    def __init__(self, rest: Rest, digest: bytes, frame: Admit) -> None:
        self.rest = rest
        self.digest = digest
        self.frame = frame
        self.calls: dict[RestCall, None] = {}
        self.admission: Admission | None = None

    def admitted(self, frame: Admitted, link: int) -> None:
        self.rest.admitted(self, Session(frame, link))

    def refused(self, error: ErrorInfo) -> None:
        self.rest.refused(self, error)


class Rest:
    __slots__ = ("_asking", "_calls", "_fetches", "_grants", "desk")

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._calls: dict[int, RestCall] = {}
        self._asking: dict[bytes, _Asking] = {}
        self._grants: OrderedDict[bytes, Session] = OrderedDict()
        self._fetches: dict[int, tuple[int, RestCall | SetRead]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    # --- calls -----------------------------------------------------------------------------------------------------------------------

    def asked(self, event: RestAsked) -> None:
        turn = self.desk.turn
        turn.stats.rest_requests += 1
        call = RestCall(self, event)
        try:
            call.params = parse_query(event.query)
            call.msgpack = answers_msgpack(event.headers, call.params)
            self._take_on(call, body_limit(event.method, event.raw_path, event.query, turn.limits))
            self._route(call, event.method, event.raw_path)
        except RelayError as error:
            call.fail(error.info)

    def _take_on(self, call: RestCall, most: int) -> None:
        """Raises RelayError: 50004, 40009."""
        turn = self.desk.turn
        if len(self._calls) >= turn.limits.rest_calls:
            raise RelayError(50004, "this server is busy; try again")
        self._calls[call.call] = call
        turn.wheel.schedule(call, turn.now + (turn.limits.publish_wait_s if self.desk.links.by_id else turn.limits.link_wait_s))
        if len(call.body) > most:
            raise RelayError(40009, f"request body too large (limit is {most} bytes)")

    def close(self, call: RestCall) -> None:
        """Nothing more is heard of it."""
        call.over = True
        self._calls.pop(call.call, None)
        self.desk.turn.wheel.cancel(call)
        if call.append is not None:
            self.desk.hub.abandon(call.append)
            call.append = None
        if call.batch is not None:
            call.batch.abandon()
            for req in call.reads:
                self._fetches.pop(req, None)
        if isinstance(call.waits_for, int):
            self._fetches.pop(call.waits_for, None)
        elif call.waits_for is not None:
            asking = self._asking.get(call.waits_for)
            if asking is not None:
                asking.calls.pop(call, None)
                if not asking.calls:
                    if asking.admission is not None:
                        asking.admission.applicant = None
                    del self._asking[call.waits_for]
        call.waits_for = None

    def gone(self, call: int) -> None:
        known = self._calls.get(call)
        if known is not None:
            self.close(known)

    # --- routes ----------------------------------------------------------------------------------------------------------------------

    def _route(self, call: RestCall, method: str, raw_path: str) -> None:
        """Raises RelayError."""
        call.segments = segments = _segments(raw_path)
        if method == "OPTIONS":
            call.answer_raw(204, b"", JSON, _preflight(call.headers))
            return
        match method, segments:
            case "GET" | "HEAD", ["time"]:
                call.answer(200, [self.desk.turn.now_ms])
            case "GET" | "HEAD", ["is-the-internet-up.txt"]:
                call.answer_raw(200, b"yes", "text/plain")
            case "GET" | "HEAD", ["healthz"]:
                call.answer_raw(200, b"ok\n", "text/plain")
            case "GET" | "HEAD", ["readyz"]:
                self._ready(call)
            case "POST", ["channels", _, "messages"]:
                call.with_session(self._publish)
            case "GET" | "HEAD", ["channels", _, "messages" | "history"] | ["channels", _, "messages", _]:
                call.with_session(self._read)
            case "GET" | "HEAD", ["channels", _]:
                call.with_session(self._status)
            case "GET" | "HEAD", ["channels", _, "presence"] | ["channels", _, "presence", "history"]:
                call.with_session(self._read)
            case "POST", ["messages"]:
                call.with_session(self._publish_batch)
            case "GET" | "HEAD", ["presence"]:
                call.with_session(self._presence_batch)
            case "GET" | "HEAD", ["stats"]:
                call.with_session(self._stats)
            case "POST", ["stats"] if self.desk.policy.sandbox:
                call.with_session(self._post_stats)
            case "POST", ["keys", _, "requestToken"]:
                self._request_token(call)
            case "POST", ["keys", _, "revokeTokens"]:
                self._revoke_tokens(call)
            case "POST", ["apps"] if self.desk.policy.sandbox:
                self._fetch(call, calls.CREATE_APP, calls.CreateApp(_json_body(call)))
            case "DELETE", ["apps", app] if self.desk.policy.sandbox:
                credential = call.present()
                key = credential.text if credential is not None and credential.basic else None
                self._fetch(call, calls.DELETE_APP, calls.DeleteApp(app, key))
            case _:
                raise RelayError(40400, "not found: no such route")

    def _ready(self, call: RestCall) -> None:
        if self.desk.links.by_id and not self.desk.stopping:
            call.answer_raw(200, b"ready\n", "text/plain")
        else:
            call.answer_raw(503, b"stopping\n" if self.desk.stopping else b"no link to a core\n", "text/plain")

    # --- publish ---------------------------------------------------------------------------------------------------------------------

    def _publish(self, call: RestCall) -> None:
        """Durable before the answer. Raises RelayError."""
        session, limits = call.session, self.desk.turn.limits
        assert session is not None, "admitted"
        where = rest_publish.place(session, call.segments[1], call.params)
        items, json = _unenveloped(call) if call.params.get("enveloped") == "false" else _items(call)
        publish = rest_publish.settled(session, where, rest_publish.content(items, json=json), call.params, limits)
        if self.desk.hub.unanswered_bytes + publish.size > limits.total_unanswered_bytes:
            raise RelayError(50003, "this server has too many publishes under way; try again", 503)
        call.name = call.segments[1]
        call.append, call.publish_id = publish.send(self.desk.hub, session, f"{self.desk.new_id()}:0", call)
        self.desk.turn.stats.messages_in += 1
        self.desk.turn.stats.bytes_in += len(call.body)

    def _publish_batch(self, call: RestCall) -> None:
        """Raises RelayError: then nothing was published."""
        session, turn = call.session, self.desk.turn
        assert session is not None, "admitted"
        for_connector = call.params.get(FOR_CONNECTORS) == "true"
        flat = _told_version(call) == 2 and not for_connector
        msgpack = _kind(call) == MSGPACK
        parsed = parse(call.body, turn.limits, msgpack=msgpack, lenient=for_connector)
        turn.stats.bytes_in += len(call.body)
        self._begin_batch(call, Batch(self.desk, call, session, parsed, msgpack=msgpack, version=2 if flat else 3))

    def _presence_batch(self, call: RestCall) -> None:
        """Raises RelayError."""
        assert call.session is not None, "admitted"
        names = channels_asked(call.query, self.desk.turn.limits)
        self._begin_batch(call, PresenceBatch(self.desk, call, call.session, names, self._send_set_read))

    def _begin_batch(self, call: RestCall, batch: Batch | PresenceBatch) -> None:
        """It has its time from when the request came, however long it waited for a session."""
        call.batch = batch
        turn = self.desk.turn
        turn.wheel.schedule(call, max(call.at + turn.limits.batch_wait_s, turn.now + 1.0))
        batch.start()

    # --- reads of the past -----------------------------------------------------------------------------------------------------------

    def _read(self, call: RestCall) -> None:
        """Raises RelayError."""
        session = call.session
        assert session is not None, "admitted"
        name = parse_channel(call.segments[1])
        members = call.segments[2:] == ["presence"]
        if name.qualifier is not None and (name.name not in METACHANNELS or call.segments[2] == "presence"):
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no history and no members")
        if not session.capability.permits_any(name.name, SHOW_MEMBERS if members else (Operation.HISTORY,)):
            raise session.capability.refusal(name.name)
        limits = self.desk.turn.limits
        if members:
            call.read = calls.MEMBERS, presence_set.asked(call.params, name.name, limits)
        else:
            call.read = history.asked(call.segments, call.params, name.name, limits)
        self._send_read(call)

    def _status(self, call: RestCall) -> None:
        """Raises RelayError."""
        session = call.session
        assert session is not None, "admitted"
        name = parse_channel(call.segments[1])
        if name.qualifier is not None:
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no status")
        if not session.capability.permits(Operation.CHANNEL_METADATA, name.name):
            raise session.capability.refusal(name.name)
        call.read = calls.STATUS, calls.Status(channel=name.name)
        self._send_read(call)

    def _stats(self, call: RestCall) -> None:
        """Raises RelayError."""
        session, turn = call.session, self.desk.turn
        assert session is not None, "admitted"
        if not session.capability.permits(Operation.STATS, "*"):
            raise session.capability.refusal("*")
        call.read = calls.STATS, stats.asked(call.params, turn.limits, turn.now_ms)
        self._send_read(call)

    def _post_stats(self, call: RestCall) -> None:
        """Raises RelayError."""
        assert call.session is not None, "admitted"
        link = self.desk.links.any()
        if link is None:
            raise RelayError(50320, "this server has no connection to its core")
        call.waits_for = self._ask(link.id, call, call.session, calls.POST_STATS, calls.PostStats(_json_body(call)))

    def _send_read(self, call: RestCall) -> None:
        """To a core that serves the channel, or to any. Raises RelayError 50320."""
        assert call.session is not None, "admitted"
        assert call.read is not None, "it is one"
        what, body = call.read
        links = self.desk.links
        link = links.any() if isinstance(body, calls.Stats) else links.pick(log_key(call.session.app, body.channel))
        if link is None:
            raise RelayError(50320, "this server has no connection to its core")
        call.waits_for = self._ask(link.id, call, call.session, what, body)

    def _send_set_read(self, read: SetRead) -> None:
        """Raises RelayError 50320."""
        session = read.call.session
        assert session is not None, "admitted"
        link = self.desk.links.pick(log_key(session.app, read.read.channel))
        if link is None:
            raise RelayError(50320, "this server has no connection to its core")
        read.call.reads.add(self._ask(link.id, read, session, calls.MEMBERS, read.read))

    def _ask(self, link: int, who: RestCall | SetRead, session: Session, what: str, body: calls.Call) -> int:
        req = self.desk.turn.request()
        self._fetches[req] = (link, who)
        self.desk.links.present_for_call(session, link)
        self.desk.turn.send(link, Fetch(req, session.id, what, calls.encode(body)))
        return req

    # --- who is it -------------------------------------------------------------------------------------------------------------------

    def admit(self, call: RestCall) -> None:
        """Raises RelayError."""
        turn, credential = self.desk.turn, call.credential
        assert credential is not None, "presented"
        secret = f"{credential.basic}\0{call.tls}\0{call.client_id or ''}\0{credential.text}"
        digest = blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = self._grants.get(digest)
        if known is not None:
            if min(known.grant_expires, known.token_expires or known.grant_expires) - _GRANT_MARGIN_MS > turn.now_ms:
                self._grants.move_to_end(digest)
                call.go_on(known)
                return
            del self._grants[digest]
        call.waits_for = digest
        asking = self._asking.get(digest)
        if asking is not None:
            asking.calls[call] = None
            return
        if not self.desk.addresses.may_present(call.address, turn.now):
            raise RelayError(42910, "too many refused credentials from this address; try again later")
        frame = Admit(
            req=turn.request(),
            credential=credential.text,
            basic=credential.basic,
            realtime=False,
            tls=call.tls,
            version=_version(call),
            client_id=call.client_id,
            address=call.address,
        )
        asking = self._asking[digest] = _Asking(self, digest, frame)
        asking.calls[call] = None
        asking.admission = self.desk.admissions.ask(frame, asking)
        if asking.admission is None:
            raise RelayError(50004, "this server is busy; try again")

    def admitted(self, asking: _Asking, session: Session) -> None:
        self._asking.pop(asking.digest, None)
        self._grants[asking.digest] = session
        if len(self._grants) > self.desk.turn.limits.rest_grants:
            self._grants.popitem(last=False)
        for call in list(asking.calls):
            call.waits_for = None
            call.go_on(session)

    def refused(self, asking: _Asking, error: ErrorInfo) -> None:
        self._asking.pop(asking.digest, None)
        if 40100 <= error.code < 40200 or error.code == 40400:
            self.desk.addresses.failed(asking.frame.address, self.desk.turn.now)
        for call in list(asking.calls):
            call.waits_for = None
            call.fail(error)

    def revoked(self, session: str) -> None:
        """Forget a remembered grant: its rights are void."""
        for digest in [digest for digest, known in self._grants.items() if known.id == session]:
            del self._grants[digest]

    # --- calls that a core answers ---------------------------------------------------------------------------------------------------

    def _request_token(self, call: RestCall) -> None:
        """Raises RelayError."""
        credential = call.present()
        if credential is not None and not credential.basic:
            raise RelayError(40162, "requestToken needs an API key, or a signed TokenRequest and no credentials at all")
        if not self.desk.addresses.may_present(call.address, self.desk.turn.now):
            raise RelayError(42910, "too many refused credentials from this address; try again later")
        key = credential.text if credential is not None else None
        self._fetch(call, calls.REQUEST_TOKEN, calls.RequestToken(call.segments[1], _json_body(call), key, call.address))

    def _revoke_tokens(self, call: RestCall) -> None:
        """Raises RelayError."""
        credential = call.present()
        if credential is None:
            raise RelayError(40101, "no credentials: revokeTokens needs the API key that issued the tokens")
        if not credential.basic:
            raise RelayError(40162, "revokeTokens needs the API key that issued the tokens, not a token")
        if not self.desk.addresses.may_present(call.address, self.desk.turn.now):
            raise RelayError(42910, "too many refused credentials from this address; try again later")
        flat = _told_version(call) == 2
        self._fetch(call, calls.REVOKE_TOKENS, calls.RevokeTokens(call.segments[1], _json_body(call), credential.text, flat))

    def _fetch(self, call: RestCall, what: str, body: calls.Call) -> None:
        link = self.desk.links.any()
        if link is None:
            raise RelayError(50320, "this server has no connection to its core")
        req = self.desk.turn.request()
        self._fetches[req] = (link.id, call)
        call.waits_for = req
        self.desk.turn.send(link.id, Fetch(req, "", what, calls.encode(body)))

    def page(self, frame: Page) -> None:
        _, call = self._fetches.pop(frame.req, (0, None))
        if call is None:
            return
        if isinstance(call, SetRead):
            call.call.reads.discard(frame.req)
            call.paged(frame)
            return
        call.waits_for = None
        if call.read is not None:
            value: Any
            links: tuple[tuple[str, str], ...] = ()
            try:
                if isinstance(call.read[1], calls.Status):
                    # To ask for a channel's status makes it active.
                    value = details(call.read[1].channel, calls.decode_counts(frame.body))
                elif isinstance(call.read[1], calls.Members):
                    after, further = presence_set.taken(call.read[1], call.members, frame)
                    if further is not None:
                        call.read = calls.MEMBERS, further
                        self._send_read(call)
                        return
                    value, links = presence_set.answer(call.members, after, call.params, self.desk.turn.limits, msgpack=call.msgpack)
                elif isinstance(call.read[1], calls.Stats):
                    assert call.session is not None, "admitted"
                    flat = _told_version(call) != 2
                    value, links = stats.answer(call.read[1], frame, call.session.app, self.desk.turn.now_ms, call.params, flat=flat)
                else:
                    value, links = history.answer(
                        call.read[1], frame, call.segments[-1], self.desk.turn.now_ms, call.params, msgpack=call.msgpack
                    )
                    self._count_past(call, call.read[1], len(value) if isinstance(value, list) else 1, len(frame.body))
            except RelayError as error:
                call.fail(error.info)
                return
            call.answer_raw(200, encode_body(value, msgpack=call.msgpack), MSGPACK if call.msgpack else JSON, links)
        elif not frame.body:
            call.answer_raw(frame.status, b"", JSON)
        elif call.msgpack:
            call.answer(frame.status, msgspec.json.decode(frame.body))
        else:
            call.answer_raw(frame.status, frame.body, JSON)

    def _count_past(self, call: RestCall, read: calls.Read, count: int, size: int) -> None:
        assert call.session is not None, "admitted"
        counts = self.desk.usages.of(call.session.app).counts
        index = OUT_REST_PRESENCE if isinstance(read, calls.History) and read.presence else OUT_REST
        counts[index] += count
        counts[index + 1] += size

    def fetch_refused(self, req: int, error: ErrorInfo) -> bool:
        """Whether `req` was a call."""
        _, call = self._fetches.pop(req, (0, None))
        if call is None:
            return False
        if isinstance(call, SetRead):
            call.call.reads.discard(req)
            call.refused(error)
            return True
        call.waits_for = None
        if call.read is None and (40100 <= error.code < 40200 or error.code == 40400):
            self.desk.addresses.failed(call.address, self.desk.turn.now)
        call.fail(error)
        return True

    def link_lost(self, link: int) -> None:
        """Calls may have had their effect: the caller decides whether to try again. Reads have none, and go to another core."""
        for req, call in [(req, call) for req, (on, call) in self._fetches.items() if on == link]:
            if isinstance(call, SetRead):
                if self._fetches.pop(req, None) is not None:  # the batch may have ended with another of its reads
                    call.call.reads.discard(req)
                    call.batch.ask(call)
            elif call.read is not None:
                del self._fetches[req]
                call.waits_for = None
                try:
                    self._send_read(call)
                except RelayError as error:
                    call.fail(error.info)
            else:
                call.fail(ErrorInfo.of(50003, "the core did not answer; try again", 503))


# --- reading requests ----------------------------------------------------------------------------------------------------------------


def _segments(raw_path: str) -> list[str]:
    """The path cut at `/`, each piece percent-decoded once. Raises RelayError 40000 for what is not UTF-8."""
    if raw_path.startswith(("http://", "https://")):  # absolute form (RFC 9112 section 3.2.2)
        raw_path = "/" + raw_path.partition("://")[2].partition("/")[2]
    try:
        return [unquote(piece, errors="strict") for piece in raw_path.partition("?")[0].removeprefix("/").split("/")]
    except UnicodeDecodeError:
        raise RelayError(40000, "the path is not UTF-8") from None


def body_limit(method: str, raw_path: str, query: str, limits: EdgeLimits) -> int:
    """The longest body that a request may have, in bytes."""
    try:
        if method == "POST" and _segments(raw_path) == ["messages"]:
            return limits.connector_body_bytes if parse_query(query).get(FOR_CONNECTORS) == "true" else limits.batch_body_bytes
    except RelayError:
        pass  # it will be refused for that
    return limits.max_frame_bytes


def _preflight(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    asked = headers.get("access-control-request-headers", "")
    safe = asked.isascii() and asked.isprintable() and len(asked) <= 2_048
    return (
        ("access-control-allow-methods", "GET,POST,PUT,PATCH,DELETE"),
        ("access-control-allow-headers", asked if asked and safe else ALLOWED),
        ("access-control-max-age", "86400"),
    )


def _version(call: RestCall) -> int:
    """Unknown versions, and version 1, count as one that is known: REST never refuses for it."""
    try:
        return protocol_version(call.headers.get("x-ably-version") or call.params.get("v"))
    except RelayError:
        return protocol_version(None)


def _told_version(call: RestCall) -> int | None:
    """None for who does not say: that is nobody's client of long ago."""
    return _version(call) if call.headers.get("x-ably-version") or call.params.get("v") else None


def _kind(call: RestCall) -> str:
    return call.headers.get("content-type", JSON).partition(";")[0].strip().lower()


def _items(call: RestCall) -> tuple[object, bool]:
    """The messages of an ordinary publish, and whether they came as JSON. Raises RelayError 40001."""
    msgpack = _kind(call) == MSGPACK
    try:
        return decode_body(call.body, msgpack=msgpack), not msgpack
    except Malformed:
        raise RelayError(40001, f"the request body is not {'msgpack' if msgpack else 'JSON'}") from None


def _unenveloped(call: RestCall) -> tuple[dict[str, Any], bool]:
    """A publish whose body is the data; the rest is in headers or in the query. Raises RelayError."""
    item: dict[str, Any] = {}
    for field, header, param in (
        ("name", "x-ably-name", "name"),
        ("id", "x-ably-messageid", "messageId"),
        ("encoding", "x-ably-encoding", "encoding"),
        ("connectionKey", "x-ably-connectionkey", "connectionKey"),
    ):
        value = call.headers.get(header) or call.params.get(param)
        if value:
            item[field] = value
    if call.client_id is not None:
        item["clientId"] = call.client_id
    kind = _kind(call) if "content-type" in call.headers else "text/plain"
    try:
        match kind:
            case "application/octet-stream":
                item["data"] = call.body
            case "text/plain":
                item["data"] = call.body.decode()
            case "application/json":
                msgspec.json.decode(call.body)
                item["data"] = call.body.decode()
                item.setdefault("encoding", "json")
            case _:
                raise RelayError(40000, "an unenveloped body is text/plain, application/json or application/octet-stream")
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise RelayError(40001, f"the request body is not {kind}") from None
    return item, False


def _json_body(call: RestCall) -> msgspec.Raw:
    """The body as JSON, in the client's own spelling where it was JSON. Raises RelayError 40001."""
    try:
        if _kind(call) == MSGPACK:
            return msgspec.Raw(msgspec.json.encode(msgspec.msgpack.decode(call.body)))
        text = call.body.decode() or "{}"
        msgspec.json.decode(text)
        return msgspec.Raw(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError, OverflowError):
        raise RelayError(40001, "the request body is not readable") from None
