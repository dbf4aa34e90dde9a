"""One client's hold on one channel, in one spelling.

    DETACHED ──ATTACH──▶ ATTACHING ──opened──▶ ATTACHED ──DETACH, refused──▶ DETACHED
                             └──────DETACH, refused──────────────────────────────▲

There is no DETACHING: nothing of a detach has to be waited for here. A refused or detached attachment is forgotten; an ATTACH that follows
makes another one. Source: specification RTL4, RTL5, RTL13; Ably protocol docs, 3.3 to 3.6.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from edge.ably.channel_params import Backlog
from edge.ably.codec import Wire
from edge.ably.protocol import PRESENCE_SUBSCRIBE, SUBSCRIBE, Action, Flag, modes_of
from edge.filters import Filter
from edge.leaving import Entered
from relay.model.capability import Operation
from relay.model.channel import ChannelName, is_qualified
from relay.model.errors import ErrorInfo

if TYPE_CHECKING:
    from edge.connection import Connection
    from edge.hub import Channel
    from edge.links import Session


class State(enum.Enum):
    ATTACHING = enum.auto()
    ATTACHED = enum.auto()
    DETACHED = enum.auto()


class Heard(enum.Enum):
    """What can happen to an attachment."""

    ATTACH_ASKED = enum.auto()
    OPENED = enum.auto()
    DETACH_ASKED = enum.auto()
    REFUSED = enum.auto()


NEXT: dict[State, dict[Heard, State]] = {
    State.ATTACHING: {
        Heard.ATTACH_ASKED: State.ATTACHING,
        Heard.OPENED: State.ATTACHED,
        Heard.DETACH_ASKED: State.DETACHED,
        Heard.REFUSED: State.DETACHED,
    },
    State.ATTACHED: {
        Heard.ATTACH_ASKED: State.ATTACHED,
        Heard.DETACH_ASKED: State.DETACHED,
        Heard.REFUSED: State.DETACHED,
    },
    State.DETACHED: {},
}
"""A missing pair changes nothing: it is an answer that comes after its question has lost its meaning."""


class Attachment:
    __slots__ = (
        *("after", "answers", "asked", "backlog", "channel", "connection", "echo", "entered", "filter", "granted", "name"),
        *("params", "reads", "state", "sync_due", "sync_id", "text"),
    )

    def __init__(self, connection: Connection, name: ChannelName, channel: Channel, filter_: Filter | None) -> None:
        self.connection = connection
        self.text = name.text
        """As the client spells it: every message about it repeats exactly this."""
        self.name = name.resource
        """What the client's capability must name."""
        self.channel = channel
        """Of a derived channel, the one that it is derived from."""
        self.filter = filter_
        """Of a derived channel: it gets the messages that this leaves, and nothing else of the channel."""
        self.state = State.ATTACHING
        self.params: dict[str, str] | None = None
        self.asked = 0
        """Mode bits that the client asked for; kept, so that a later token can grant more of them."""
        self.granted = 0
        self.reads = False
        """Whether its session may read the channel: only then can it be the witness."""
        self.echo = True
        self.after: str | None = None
        """The client's channelSerial: replay what came later."""
        self.backlog: Backlog | None = None
        """What the client wants to be told of the time before it attaches."""
        self.answers = 0
        """ATTACHs that are unanswered; each gets its own ATTACHED."""
        self.entered: Entered | None = None
        """The members that came through it."""
        self.sync_due = False
        """A SYNC is promised, and has not begun: it does when the attachment gets what comes live."""
        self.sync_id = ""
        """Of its latest SYNC."""

    # what the hub needs to know

    @property
    def client(self) -> int:
        return self.connection.client

    @property
    def session(self) -> Session:
        session = self.connection.session
        assert session is not None, "only an admitted connection attaches"
        return session

    @property
    def wire(self) -> Wire:
        return self.connection.wire

    @property
    def attached(self) -> bool:
        return self.state is State.ATTACHED

    @property
    def over(self) -> bool:
        return self.state is State.DETACHED

    @property
    def receives(self) -> bool:
        """Whether messages go to it."""
        return self.granted & SUBSCRIBE != 0

    @property
    def receives_presence(self) -> bool:
        return self.granted & PRESENCE_SUBSCRIBE != 0

    # what happens to it

    def step(self, heard: Heard) -> bool:
        """False when `heard` means nothing any more."""
        after = NEXT[self.state].get(heard)
        if after is None:
            return False
        self.state = after
        if after is State.DETACHED:
            self.connection.desk.occupancies.settle(self)
        return True

    def allow(self, asked: int) -> bool:
        """Grant of `asked` what the session's capability permits. False when nothing is left."""
        session = self.session
        operations = session.capability.operations_on(self.name)
        self.asked = asked
        self.granted = asked & modes_of(operations, read_only=self.filter is not None or is_qualified(self.channel.key))
        self.reads = Operation.SUBSCRIBE in operations
        return self.granted != 0

    def opened(self, serial: str | None, *, resumed: bool, backlog: bool, error: ErrorInfo | None) -> None:
        """The channel is open for it: one ATTACHED for every ATTACH so far; from the second on nothing was lost in between."""
        if not self.step(Heard.OPENED):
            return
        self.after = self.backlog = None
        self.sync_due = self.receives_presence and (self.sync_due or self.channel.presence.anyone)
        granted = self.granted | (Flag.HAS_PRESENCE if self.sync_due else 0)
        self._tell(serial, granted | (Flag.RESUMED if resumed else 0) | (Flag.HAS_BACKLOG if backlog else 0), error)
        for _ in range(self.answers - 1):
            self._tell(serial, granted | Flag.RESUMED, None)
        self.answers = 0

    def asked_again(self, serial: str | None) -> None:
        """ATTACH on an attached channel: new params and modes, and no message lost (RTL16a)."""
        self.step(Heard.ATTACH_ASKED)
        presence = self.channel.presence
        anyone = self.receives_presence and presence.anyone
        self._tell(serial, self.granted | Flag.RESUMED | (Flag.HAS_PRESENCE if anyone else 0), None)
        if anyone:
            presence.due(self)

    def told_anew(self, serial: str | None) -> None:
        """Unsolicited ATTACHED, and nothing was lost: with other modes after a reauthentication, with a later position behind a filter."""
        if self.attached:
            self._tell(serial, self.granted | Flag.RESUMED, None)

    def discontinued(self, serial: str | None, error: ErrorInfo, *, anyone: bool) -> None:
        """Unsolicited ATTACHED without RESUMED: messages were lost (RTL12). If there may be members a SYNC follows, be it empty."""
        if self.attached:
            self.sync_due = anyone and self.receives_presence
            self._tell(serial, self.granted | (Flag.HAS_PRESENCE if self.sync_due else 0), error)

    def failed(self, error: ErrorInfo) -> None:
        """The core refuses. What may pass makes the client try again (DETACHED); what will not fails its channel (ERROR)."""
        if not self.step(Heard.REFUSED):
            return
        passing = error.status_code >= 500 or error.status_code == 429 or error.code == 90007
        self.connection.channel_failed(self, Action.DETACHED if passing else Action.ERROR, error)

    def _tell(self, serial: str | None, flags: int, error: ErrorInfo | None) -> None:
        connection = self.connection
        connection.say(Action.ATTACHED, channel=self.text, channelSerial=serial, flags=int(flags), params=self.params or None, error=error)
        connection.desk.occupancies.settle(self)
