"""`GET /presence`: the presence sets of several channels. Source: specification RSC24, BGR, BGF; Ably protocol docs, 8.4."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import msgspec

from edge.ably.codec import error_shape, member_shape
from edge.batch import summary
from edge.presence_set import taken
from relay.link import calls
from relay.link.frames import Page
from relay.model.capability import Operation
from relay.model.channel import parse_channel
from relay.model.errors import ErrorInfo, RelayError
from relay.model.limits import EdgeLimits

if TYPE_CHECKING:
    from edge.desk import Desk
    from edge.links import Session
    from edge.rest import RestCall

SHOW_MEMBERS = (Operation.SUBSCRIBE, Operation.PRESENCE)
"""Either permits to see a presence set."""
_LATE = ErrorInfo.of(50003, "the presence set could not be read in time; try again", 503)


def channels_asked(query: str, limits: EdgeLimits) -> list[str]:
    """Distinct names of the param `channels` of a raw query string: separated by commas, each percent-encoded, or all of them together, as
    SDKs do. Raises RelayError 40000, 90010."""
    raw = next((value for name, _, value in (pair.partition("=") for pair in query.split("&")) if name == "channels"), "")
    try:
        if "," in raw:
            names = [unquote_plus(name, errors="strict") for name in raw.split(",")]
        else:
            names = unquote_plus(raw, errors="strict").split(",")
    except UnicodeDecodeError:
        raise RelayError(40000, "the channels are not UTF-8") from None
    if not raw:
        raise RelayError(40000, "which channels? (channels=a,b)")
    names = list(dict.fromkeys(names))
    if len(names) > limits.batch_channels:
        raise RelayError(90010, f"Too many channels in one batch (limit is {limits.batch_channels})")
    return names


class SetRead:
    """The set of one channel: page after page, from whichever core serves it."""

    __slots__ = ("batch", "call", "members", "number", "read", "size")

    def __init__(self, batch: PresenceBatch, number: int, read: calls.Members) -> None:
        self.batch = batch
        self.call = batch.call
        self.number = number
        self.read = read
        self.members: list[calls.MemberItem] = []
        self.size = 0

    def paged(self, frame: Page) -> None:
        try:
            self.size += len(frame.body)
            self.batch.spend(len(frame.body))
            after, _ = taken(self.read, self.members, frame)
        except RelayError as error:
            self.refused(error.info)
            return
        if after is None:
            self.batch.done(self)
        else:
            self.read = msgspec.structs.replace(self.read, after=after)
            self.batch.ask(self)

    def refused(self, error: ErrorInfo) -> None:
        self.batch.failed(self.number, error)


class PresenceBatch:
    """A few channels at a time."""

    __slots__ = ("_at", "_bytes", "_desk", "_left", "_names", "_results", "_send", "_session", "_under_way", "call")

    def __init__(self, desk: Desk, call: RestCall, session: Session, names: list[str], send: Callable[[SetRead], None]) -> None:
        """`send` asks a core for the next page; it raises RelayError where there is none."""
        self._desk = desk
        self.call = call
        self._session = session
        self._names = names
        self._send = send
        self._results: list[dict[str, Any] | None] = [None] * len(names)
        self._left = len(names)
        self._at = 0
        self._under_way = 0
        self._bytes = 0

    def start(self) -> None:
        self._pump()

    def _pump(self) -> None:
        limits = self._desk.turn.limits
        while self._at < len(self._names) and self._under_way < limits.batch_window_reads and not self.call.over:
            number, self._at = self._at, self._at + 1
            self._under_way += 1
            try:
                channel = self._permitted(self._names[number])
                self._send(SetRead(self, number, calls.Members(channel=channel, limit=limits.page_messages, fresh=True)))
            except RelayError as error:
                self._put(number, error.info, [])
        if not self._left:
            self._finish()

    def _permitted(self, text: str) -> str:
        """Raises RelayError 40010, 40160, 40161, 40311."""
        name = parse_channel(text)
        if name.qualifier is not None:
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no members")
        if not self._session.capability.permits_any(name.name, SHOW_MEMBERS):
            raise self._session.capability.refusal(name.name)
        return name.name

    def spend(self, size: int) -> None:
        """Raises RelayError 40009."""
        self._bytes += size
        most = self._desk.turn.limits.batch_presence_bytes
        if self._bytes > most:
            raise RelayError(40009, f"the presence sets are too large for one answer (limit is {most} bytes); ask for fewer channels")

    def ask(self, read: SetRead) -> None:
        try:
            self._send(read)
        except RelayError as error:
            self.failed(read.number, error.info)

    def done(self, read: SetRead) -> None:
        self._put(read.number, None, read.members)
        self._pump()

    def failed(self, number: int, error: ErrorInfo) -> None:
        self._put(number, error, [])
        self._pump()

    def _put(self, number: int, error: ErrorInfo | None, members: list[calls.MemberItem]) -> None:
        result: dict[str, Any] = {"channel": self._names[number]}
        if error is None:
            result["presence"] = [member_shape(member, msgpack=self.call.msgpack) for member in members]
        else:
            self._desk.turn.stats.refusals[error.code] += 1
            result["error"] = error_shape(error)
        self._results[number] = result
        self._left -= 1
        self._under_way -= 1

    def expire(self) -> None:
        """Time is up: every channel without a result gets one."""
        if self.call.over:
            return
        for number, result in enumerate(self._results):
            if result is None:
                self._put(number, _LATE, [])
        self._finish()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._at = len(self._names)

    def _finish(self) -> None:
        self.call.answer(200, summary([result for result in self._results if result is not None]))
