"""`POST /messages`: one request that publishes on many channels. Source: specification RSC22, BSP, BPR, BPF; Ably protocol docs, 8.4, 12.4.

Each channel of each spec is a publish of its own, atomic and with a result of its own. They are sent in the order of the request, and what
several specs publish on one channel keeps it. At most `batch_window_…` of them are under way at once, so that no batch takes more than its
share of the edge and the core, however large it is; specs are decoded when their turn comes.

A publish that a core has no room for is not lost: it is sent again a moment later, unless something behind it on its channel is in by then.
What is not done when time is up is told by its result. Only a request that cannot be read, or by nobody we know, is refused as a whole.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from edge.ably.codec import Malformed, decode_body, error_shape
from edge.hub import PendingAppend
from edge.rest_publish import Content, Place, RestPublish, content, place, settled
from edge.turn import TICK, Timed
from relay.model.errors import ErrorInfo, RelayError
from relay.model.limits import EdgeLimits
from relay.model.serials import message_serial

if TYPE_CHECKING:
    from edge.desk import Desk
    from edge.links import Session
    from edge.rest import RestCall

FOR_CONNECTORS = "newBatchResponse"
"""The query param of a caller that takes any answer but a success for the failure of everything it sent."""
_SOME_FAILED = ErrorInfo.of(40020, "Batched response includes errors")
_NO_TIME = ErrorInfo.of(50003, "there was no time left for this publish; nothing was published", 503)
_NOT_KNOWN = ErrorInfo.of(50003, "the outcome of the publish is not known", 503)
_BEHIND = ErrorInfo.of(50003, "there was no room for this publish, and others on its channel came after it; nothing was published", 503)
_NO_ROOM = frozenset({50003, 50320})
"""Why a core did not take a publish that it would take a moment later."""
_CHANNELS_BYTES = 262_144
"""Text of the channels of one spec: more than a hundred of the longest names there can be."""


class Spec(msgspec.Struct):
    """What is published where. Both parts stay as they came until their turn."""

    channels: msgspec.Raw
    messages: msgspec.Raw


_json = msgspec.json.Decoder(Spec | list[Spec])
_msgpack = msgspec.msgpack.Decoder(Spec | list[Spec])
_json_channels = msgspec.json.Decoder(str | list[str])
_msgpack_channels = msgspec.msgpack.Decoder(str | list[str])


class Parsed(msgspec.Struct):
    """A request whose shape is sound: its specs, the distinct channels of each, and whether it was one bare spec."""

    specs: list[tuple[list[str], bytes]]
    bare: bool
    over: frozenset[str] = frozenset()
    """Channels beyond the number that one request may have."""


def parse(body: bytes, limits: EdgeLimits, *, msgpack: bool, lenient: bool) -> Parsed:
    """`lenient`: too many channels are the fault of the specs that name them. Raises RelayError 40000, 40001, 40034, 90010."""
    try:
        found = (_msgpack if msgpack else _json).decode(body)
    except msgspec.ValidationError:
        raise RelayError(40000, "Malformed batch: a spec, or an array of specs, with channels and messages each") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        raise RelayError(40001, f"the request body is not {'msgpack' if msgpack else 'JSON'}") from None
    bare = isinstance(found, Spec)
    given = [found] if isinstance(found, Spec) else found
    if not given:
        raise RelayError(40000, "Malformed batch: no specs")
    distinct: dict[str, None] = {}
    specs: list[tuple[list[str], bytes]] = []
    publishes = 0
    for spec in given:
        channels = _channels(spec.channels, msgpack=msgpack)
        publishes += len(channels)
        if publishes > limits.batch_publishes:
            raise RelayError(40034, f"Too many publishes in one batch (limit is {limits.batch_publishes})")
        distinct.update(dict.fromkeys(channels))
        if len(distinct) > limits.batch_channels and not lenient:
            raise RelayError(90010, f"Too many channels in one batch (limit is {limits.batch_channels})")
        specs.append((channels, spec.messages))
    return Parsed(specs, bare, frozenset(list(distinct)[limits.batch_channels :]))


def _channels(raw: msgspec.Raw, *, msgpack: bool) -> list[str]:
    """Distinct names, in their order. Raises RelayError 40000."""
    if len(raw) > _CHANNELS_BYTES:
        raise RelayError(40000, "Malformed batch: the channels of a spec are too long")
    try:
        found = (_msgpack_channels if msgpack else _json_channels).decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        raise RelayError(40000, "Malformed batch: channels must be a name or an array of names") from None
    names = [found] if isinstance(found, str) else list(dict.fromkeys(found))
    if not names:
        raise RelayError(40000, "Malformed batch: a spec without channels")
    return names


class _Job:
    """One publish: of spec `spec`, on its `at`-th channel."""

    __slots__ = ("append", "at", "lane", "message_id", "number", "publish", "spec")

    def __init__(self, number: int, spec: int, at: int, lane: _Lane, publish: RestPublish) -> None:
        self.number = number
        self.spec = spec
        self.at = at
        self.lane = lane
        self.publish = publish
        self.append: PendingAppend | None = None
        self.message_id = ""


class _Lane:
    """One channel within the batch: what is published there stays in order."""

    __slots__ = ("again", "under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.again: list[_Job] = []
        """Refused for want of room."""
        self.waiting: deque[_Job] = deque()
        """Behind those."""


class Batch(Timed):
    __slots__ = (
        *("_again", "_at", "_bytes", "_call", "_content", "_desk", "_jobs", "_lanes", "_left", "_made", "_messages"),
        *("_msgpack", "_number", "_parsed", "_places", "_results", "_session", "_taken", "_version"),
    )

    def __init__(self, desk: Desk, call: RestCall, session: Session, parsed: Parsed, *, msgpack: bool, version: int) -> None:
        """`version`: 2 wants the flat form of the answer."""
        self._desk = desk
        self._call = call
        self._session = session
        self._parsed = parsed
        self._msgpack = msgpack
        self._version = version
        self._results: list[list[dict[str, Any] | None]] = [[None] * len(channels) for channels, _ in parsed.specs]
        self._left = sum(map(len, self._results))
        self._at = (0, 0)
        """Spec and channel that come next."""
        self._content: Content | RelayError | None = None
        """Of that spec."""
        self._places: dict[str, Place | RelayError] = {}
        self._lanes: dict[str, _Lane] = {}
        self._jobs: dict[int, _Job] = {}
        """Under way, by the number of their append."""
        self._again: dict[_Lane, None] = {}
        """Where something waits to be sent again."""
        self._taken = 0
        """Publishes that were begun and have no result yet."""
        self._bytes = 0
        """Of these."""
        self._messages = 0
        self._number = 0
        self._made = desk.new_id()

    def start(self) -> None:
        self._pump()

    # --- sending ---------------------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin what may be begun now."""
        limits = self._desk.turn.limits
        looked, turn_bytes = 0, limits.max_frame_bytes
        while self._at[0] < len(self._results) and self._taken < limits.batch_window_publishes and self._bytes < limits.batch_window_bytes:
            if looked >= limits.batch_window_publishes or turn_bytes <= 0 or self._crowded():
                self._desk.turn.wheel.schedule(self, self._desk.turn.now + TICK)
                break
            spec, at = self._at
            channels, raw = self._parsed.specs[spec]
            looked += 1
            if self._content is None:
                turn_bytes -= len(raw)
                self._content = self._decoded(raw)
            self._begin(spec, at, channels[at], self._content)
            if at + 1 < len(channels):
                self._at = (spec, at + 1)
            else:
                self._at, self._content = (spec + 1, 0), None
        if not self._left:
            self._finish()

    def _crowded(self) -> bool:
        """Whether the edge holds as many publishes as it may."""
        hub, limits = self._desk.hub, self._desk.turn.limits
        return hub.unanswered_bytes + limits.max_message_bytes > limits.total_unanswered_bytes

    def _decoded(self, raw: bytes) -> Content | RelayError:
        most = self._desk.turn.limits.max_frame_bytes
        if len(raw) > most:
            return RelayError(40009, f"the messages of one spec are too large (limit is {most} bytes)")
        try:
            return content(decode_body(raw, msgpack=self._msgpack), json=not self._msgpack)
        except Malformed:
            return RelayError(40001, f"the messages are not {'msgpack' if self._msgpack else 'JSON'}")
        except RelayError as error:
            return error

    def _place(self, channel: str) -> Place | RelayError:
        """Looked up once for all specs that name it."""
        known = self._places.get(channel)
        if known is None:
            try:
                known = place(self._session, channel, self._call.params)
            except RelayError as error:
                known = error
            if channel in self._parsed.over:
                known = RelayError(90010, f"Too many channels in one batch (limit is {self._desk.turn.limits.batch_channels})")
            self._places[channel] = known
        return known

    def _begin(self, spec: int, at: int, channel: str, what: Content | RelayError) -> None:
        publish = self._checked(self._place(channel), what)
        if isinstance(publish, RelayError):
            self._results[spec][at] = self._failure(spec, at, publish.info)
            self._left -= 1
            return
        lane = self._lanes.get(publish.name)
        if lane is None:
            lane = self._lanes[publish.name] = _Lane()
        self._number += 1
        job = _Job(self._number, spec, at, lane, publish)
        self._taken += 1
        self._bytes += publish.size
        if lane.again or lane.waiting:
            lane.waiting.append(job)
        else:
            self._send(job)

    def _checked(self, where: Place | RelayError, what: Content | RelayError) -> RestPublish | RelayError:
        limits = self._desk.turn.limits
        if isinstance(where, RelayError):
            return where
        if isinstance(what, RelayError):
            return what
        self._messages += len(what.messages)
        if self._messages > limits.batch_messages:
            return RelayError(40034, f"Too many messages in one batch (limit is {limits.batch_messages})")
        try:
            return settled(self._session, where, what, self._call.params, limits)
        except RelayError as error:
            return error

    def _send(self, job: _Job) -> None:
        turn = self._desk.turn
        job.lane.under_way += 1
        job.append, job.message_id = job.publish.send(self._desk.hub, self._session, f"{self._made}:{job.number}", self)
        self._jobs[job.append.frame.req] = job
        turn.stats.messages_in += 1

    def wake(self) -> None:
        """Another attempt with what there was no room for, and whatever else was put off."""
        if self._call.over:
            return
        again, self._again = list(self._again), {}
        for lane in again:
            jobs, lane.again, lane.waiting = [*lane.again, *lane.waiting], [], deque()
            for job in jobs:
                self._send(job)
        self._pump()

    # --- what becomes of them (edge.hub.Publisher) -----------------------------------------------------------------------------------

    def appended(self, append: PendingAppend, serial: str) -> None:
        job = self._landed(append)
        result: dict[str, Any] = {"channel": self._channel(job.spec, job.at), "messageId": job.message_id}
        if self._version > 2:
            result["serials"] = [message_serial(serial, index) for index in range(len(job.publish.messages))]
        self._settle(job, result)
        for overtaken in [other for other in job.lane.again if other.number < job.number]:
            job.lane.again.remove(overtaken)
            self._settle(overtaken, self._failure(overtaken.spec, overtaken.at, _BEHIND))
        self._next(job.lane)

    def append_refused(self, append: PendingAppend, error: ErrorInfo) -> None:
        job = self._landed(append)
        if error.code in _NO_ROOM and append.frame.fresh:
            job.lane.again.append(job)
        else:
            self._settle(job, self._failure(job.spec, job.at, error))
        self._next(job.lane)

    def append_unknown(self, append: PendingAppend) -> None:
        job = self._landed(append)
        self._settle(job, self._failure(job.spec, job.at, _NOT_KNOWN))
        self._next(job.lane)

    def _landed(self, append: PendingAppend) -> _Job:
        job = self._jobs.pop(append.frame.req)
        job.append = None
        job.lane.under_way -= 1
        return job

    def _next(self, lane: _Lane) -> None:
        if lane.again:
            if not lane.under_way:
                lane.again.sort(key=lambda job: job.number)
                self._again[lane] = None
                self._desk.turn.wheel.schedule(self, self._desk.turn.now + TICK)
        elif lane.waiting:  # those that they waited for have been given up
            jobs, lane.waiting = lane.waiting, deque()
            for job in jobs:
                self._send(job)
        self._pump()

    # --- results ---------------------------------------------------------------------------------------------------------------------

    def _channel(self, spec: int, at: int) -> str:
        return self._parsed.specs[spec][0][at]

    def _failure(self, spec: int, at: int, error: ErrorInfo) -> dict[str, Any]:
        self._desk.turn.stats.refusals[error.code] += 1
        return {"channel": self._channel(spec, at), "error": error_shape(error)}

    def _settle(self, job: _Job, result: dict[str, Any]) -> None:
        self._results[job.spec][job.at] = result
        self._left -= 1
        self._taken -= 1
        self._bytes -= job.publish.size

    def _finish(self) -> None:
        if self._call.over:
            return
        results = [[result for result in of_spec if result is not None] for of_spec in self._results]
        if self._version == 2:
            flat = [result for of_spec in results for result in of_spec]
            if any("error" in result for result in flat):
                self._call.fail_with(_SOME_FAILED, {"batchResponse": flat})
            else:
                self._call.answer(201, flat)
            return
        answer = [summary(of_spec) for of_spec in results]
        self._call.answer(201, answer[0] if self._parsed.bare else answer)

    # --- the end ---------------------------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Time is up: every publish without a result gets one."""
        if self._call.over:
            return
        known = {(job.spec, job.at) for job in self._jobs.values()}
        self.abandon()
        for spec, of_spec in enumerate(self._results):
            for at, result in enumerate(of_spec):
                if result is None:
                    of_spec[at] = self._failure(spec, at, _NOT_KNOWN if (spec, at) in known else _NO_TIME)
        self._finish()

    def abandon(self) -> None:
        """Nobody waits for it any more: nothing further is sent."""
        self._desk.turn.wheel.cancel(self)
        self._at = (len(self._results), 0)
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            if job.append is not None:
                self._desk.hub.abandon(job.append)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A BatchResult (BAR2)."""
    failures = sum("error" in result for result in results)
    return {"successCount": len(results) - failures, "failureCount": failures, "results": results}
