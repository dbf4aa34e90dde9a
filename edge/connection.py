"""One client: from its upgrade to its last frame. Source: specification RTN; Ably protocol docs, 1, 2, 3.3, 3.6, 4.2, 7.7 to 7.9.

    CONNECTING ──Admitted──▶ CONNECTED ──CLOSE, refusal, expiry, slowness, lost socket──▶ OVER
         └──Refused, out of time───────────────────────────────────────────────────────────▲

The first message is CONNECTED, ERROR or DISCONNECTED. A refusal is always told inside the WebSocket: SDKs take a failed upgrade for a
broken network and try for ever.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, NamedTuple

from edge.ably.channel_params import METRICS_PARAM, attach_params, modes_asked, publish_params, rewind_asked
from edge.ably.codec import JSON, MSGPACK, Malformed, ProtocolMessage, Wire, decode
from edge.ably.connect import Credential, credential_of, is_dead, is_msgpack, parse_connect, parse_query
from edge.ably.protocol import PRESENCE, PUBLISH, Action, Flag, modes_of
from edge.ably.websocket import PING
from edge.admission import Admission
from edge.attachment import Attachment, Heard
from edge.desk import Desk
from edge.events import ClientOpened
from edge.filters import expression_of
from edge.hub import Channel, PendingAppend
from edge.leaving import Entered, leave
from edge.limits import InboundRate, Verdict
from edge.links import Session
from edge.members import Shown
from edge.sync import Syncs
from edge.turn import TICK, Timed
from relay.link.frames import Admit, Admitted, Renew, Up
from relay.model.capability import Operation
from relay.model.channel import METACHANNELS, ChannelName, parse_channel
from relay.model.errors import ErrorInfo, RelayError
from relay.model.message import Message, PresenceAction, PresenceItem, RecordBody
from relay.model.presence import presence_from_wire, settle_presence
from relay.model.publish import is_ephemeral, messages_from_wire, settle
from relay.model.serials import message_serial

_NORMAL = 1000
_TOO_BIG = 1009
_DEAD_AFTER_S = 10.0
"""Beyond the idle interval: a peer silent for so long, pings unanswered, is gone."""
_LIVE_RETRY_S = 5.0
_RETRIABLE = frozenset({80021, 80003, 42910, 42911, 42912, 42913, 42917, 42918})

KEY_HINT = "API keys are not accepted here: use a token (see basic_auth in the settings of the edge)"
BASIC_WITHOUT_TLS = "an API key is accepted over TLS only"


class State(enum.Enum):
    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    OVER = enum.auto()


class Answer:
    """What one msgSerial will be answered with. Answers leave in the order of the publishes, whatever order they come in."""

    __slots__ = ("append", "asked_at", "count", "done", "error", "serial", "serials", "text")

    def __init__(self, serial: int, asked_at: float) -> None:
        self.serial = serial
        self.asked_at = asked_at
        self.append: PendingAppend | None = None
        self.count = 0
        self.done = False
        self.error: ErrorInfo | None = None
        self.serials: list[str] | None = None
        self.text = ""
        """The channel as the client spells it."""


class Publish(NamedTuple):
    """A MESSAGE or PRESENCE in stored form. `base` is that of the client's own ids, None if it supplied none."""

    channel: str
    size: int
    messages: list[Message]
    presence: list[PresenceItem]
    base: str | None = None
    ephemeral: bool = False


class Connection(Timed):
    """About 1.5 KB while idle, grant included."""

    __slots__ = (
        *("address", "admission", "answers", "attachments", "auth_asked", "client", "client_id", "desk", "early", "echo", "epoch"),
        *("expected", "heard_at", "heartbeats", "interval", "key", "msgpack", "next_beat", "opened_at", "rate", "renewal", "repeats"),
        *("session", "state", "tls", "unanswered_bytes", "unused", "version", "renew_at", "admitted_ms", "by_append", "doubt_at"),
        *("remain_present_ms", "syncs", "turned_away"),
    )

    def __init__(self, desk: Desk, event: ClientOpened) -> None:
        turn = desk.turn
        self.desk = desk
        self.client = event.client
        self.address = event.address
        self.tls = event.tls
        self.state = State.CONNECTING
        self.session: Session | None = None
        self.key = ""
        self.unused = False
        """Resumed, and its client has not sent anything yet: it may not know its new key."""
        self.msgpack = False
        self.echo = True
        self.heartbeats = True
        self.version = 0
        self.client_id: str | None = None
        self.interval = turn.limits.max_idle_interval_s
        self.admission: Admission | None = None
        self.renewal: int | None = None
        self.attachments: dict[str, Attachment] | None = None
        self.answers: deque[Answer] | None = None
        self.by_append: dict[int, Answer] | None = None
        self.unanswered_bytes = 0
        self.expected = 0
        self.early: list[bytes] | None = None
        self.opened_at = self.heard_at = self.next_beat = turn.now
        self.rate = InboundRate(turn.limits, turn.now)
        self.repeats = 0
        """How many of the publishes to come may repeat those of an earlier connection: all that it may have left unanswered. Such a one is
        never NACKed for want of room, since its first copy may be on its way."""
        self.doubt_at = float("inf")
        """When to drop the client so that it settles a publish of unknown fate by sending it again."""
        self.turned_away: Answer | None = None
        """The last publish that was refused for what may be otherwise the next time: its rate, or room."""
        self.epoch = desk.links.losses
        self.auth_asked = False
        self.renew_at = 0.0
        self.admitted_ms = 0
        self.remain_present_ms: int | None = None
        self.syncs: Syncs | None = None

    @property
    def wire(self) -> Wire:
        return MSGPACK if self.msgpack else JSON

    def say(self, action: Action, /, **fields: Any) -> None:
        self.desk.turn.write(self.client, self.wire.frame(action, **fields))

    # --- connecting ------------------------------------------------------------------------------------------------------------------

    def open(self, event: ClientOpened) -> None:
        desk, turn = self.desk, self.desk.turn
        turn.stats.connects += 1
        try:
            params = parse_query(event.query)
            self.msgpack = is_msgpack(params)
            asked = parse_connect(params, event.headers)
            self._let_in()
            credential = self._presentable(asked.credential)
        except RelayError as error:
            self.refuse(error.info)
            return
        self.version, self.echo, self.heartbeats, self.client_id = asked.version, asked.echo, asked.heartbeats, asked.client_id
        self.remain_present_ms = asked.remain_present_ms
        if asked.idle_interval_ms is not None:
            self.interval = asked.idle_interval_ms / 1000
        if (asked.resume or asked.recover) is not None:
            self.repeats = self.rate.grace = turn.limits.unanswered_publishes
        self._admit(
            Admit(
                req=turn.request(),
                credential=credential.text,
                basic=credential.basic,
                realtime=True,
                tls=event.tls,
                version=asked.version,
                client_id=asked.client_id,
                resume=asked.resume,
                recover=None if asked.resume else asked.recover,
                address=event.address,
                remain_present_ms=self.remain_present_ms,
            )
        )
        if self.state is State.CONNECTING:
            wait = turn.limits.link_wait_s if not desk.links.by_id else turn.limits.admit_wait_s
            turn.wheel.schedule(self, turn.now + wait)

    def _let_in(self) -> None:
        """Raises RelayError when there is no room for another client, or for another one from its address."""
        desk, turn = self.desk, self.desk.turn
        if desk.stopping:
            raise RelayError(50320, "this server is stopping; connect to another one")
        if len(desk.connections) > turn.limits.connections:
            raise RelayError(50320, "this server is full; connect to another one")
        if not desk.addresses.may_connect(self.address, turn.now):
            raise RelayError(80021, "too many connections, or refused credentials, from this address; try again later")

    def _presentable(self, credential: Credential | None) -> Credential:
        """What no core needs to see is refused here. Raises RelayError."""
        if credential is None:
            raise RelayError(40101, "no credentials: connect with a key or a token")
        return presentable(credential, self.desk, tls=self.tls, realtime=True)

    def _admit(self, frame: Admit) -> None:
        self.admission = self.desk.admissions.ask(frame, self, self.session)
        if self.admission is None:
            self.refuse(ErrorInfo.of(50320, "this server is overloaded; connect to another one"))

    def admitted(self, frame: Admitted, link: int) -> None:
        """Answer to the connect, or to an AUTH while connected."""
        self.admission = None
        if self.state is State.OVER:
            return
        if self.state is State.CONNECTED:
            self._reauthenticated(frame, link)
            return
        desk, turn = self.desk, self.desk.turn
        self.session = Session(frame, link)
        desk.usages.admitted(self.session)
        self.key = frame.key
        self.unused = frame.incarnation > 0
        self.epoch = desk.links.losses
        before = desk.sessions.get(frame.session)
        if before is not None:
            before.superseded()
        desk.sessions[frame.session] = self
        self.state = State.CONNECTED
        self.admitted_ms = turn.now_ms
        self.heard_at = turn.now
        self._connected(frame.error)
        self._schedule_renewal()
        self.next_beat = turn.now + self.interval * 2 / 3
        self._arm()
        early, self.early = self.early, None
        for data in early or ():
            self.receive(data)

    def refused(self, error: ErrorInfo) -> None:
        """Answer to the connect, or to an AUTH while connected."""
        self.admission = None
        if self.state is State.OVER:
            return
        if 40100 <= error.code < 40200 or error.code == 40400:
            self.desk.addresses.failed(self.address, self.desk.turn.now)
        self.refuse(error)

    def _connected(self, error: ErrorInfo | None) -> None:
        limits = self.desk.turn.limits
        session = self.session
        assert session is not None, "admitted"
        details: dict[str, Any] = {
            "connectionKey": self.key,
            "maxMessageSize": limits.max_message_bytes,
            "maxInboundRate": int(limits.inbound_per_s),
            "maxOutboundRate": int(limits.inbound_per_s),
            "maxFrameSize": limits.max_frame_bytes,
            "serverId": self.desk.server_id,
            "connectionStateTtl": int(limits.connection_state_ttl_s * 1000),
            "maxIdleInterval": int(self.interval * 1000),
        }
        if session.client_id is not None:
            details["clientId"] = session.client_id
        self.say(
            Action.CONNECTED,
            connectionId=session.id,
            connectionKey=self.key,
            connectionDetails=details,
            error=error,
            timestamp=self.desk.turn.now_ms,
        )

    # --- the end ---------------------------------------------------------------------------------------------------------------------

    def refuse(self, error: ErrorInfo) -> None:
        """Tell the client in the way that makes it do the right thing, then close."""
        passing = error.status_code >= 500 or error.code in _RETRIABLE
        self._end(Action.DISCONNECTED if passing else Action.ERROR, error)

    def disconnect(self, error: ErrorInfo) -> None:
        """The client comes back at once, and resumes."""
        self._end(Action.DISCONNECTED, error)

    def _end(self, action: Action, error: ErrorInfo, code: int = _NORMAL) -> None:
        if self.state is State.OVER:
            return
        stats = self.desk.turn.stats
        stats.refusals[error.code] += 1
        self.say(action, error=error)
        self.desk.turn.close(self.client, code, action.name.lower())
        self._over(closed=False)

    def superseded(self) -> None:
        """The same connection goes on over another socket. Its rights and its state are the new one's."""
        if self.state is State.OVER:
            return
        self.say(Action.DISCONNECTED, error=ErrorInfo.of(80003, "the connection was resumed elsewhere"))
        self.desk.turn.close(self.client, _NORMAL, "superseded")
        self._over(closed=False, depart=False)

    def superseded_by(self, incarnation: int) -> None:
        """The core says that the connection goes on as `incarnation`: at another edge, unless it is this very one."""
        if self.session is not None and self.session.incarnation < incarnation:
            self.superseded()

    def lost(self, why: str) -> None:
        """The socket is gone."""
        if self.state is not State.OVER:
            self.desk.turn.stats.closures[why] += 1
            self._over(closed=False)

    def _over(self, *, closed: bool, depart: bool = True) -> None:
        desk = self.desk
        self.state = State.OVER
        desk.turn.wheel.cancel(self)
        if self.admission is not None:
            self.admission.applicant = None
            self.admission = None
        for answer in self.answers or ():
            if answer.append is not None:
                desk.hub.abandon(answer.append)
        self.answers = self.by_append = self.early = self.syncs = None
        attachments, self.attachments = self.attachments, None
        for attachment in (attachments or {}).values():
            attachment.step(Heard.DETACH_ASKED)
            attachment.channel.detach(attachment, departing=True)
        session = self.session
        if session is None:
            return
        if desk.sessions.get(session.id) is self:
            del desk.sessions[session.id]
        if depart:
            desk.links.depart(session, closed=closed)

    # --- frames ----------------------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        turn = self.desk.turn
        if self.state is State.OVER:
            return
        self.heard_at = turn.now
        if len(data) > turn.limits.max_frame_bytes:
            self._end(Action.ERROR, ErrorInfo.of(40009, f"frame too large (limit is {turn.limits.max_frame_bytes} bytes)"), _TOO_BIG)
            return
        if self.state is State.CONNECTING:
            if self.early is None:
                self.early = []
            self.early.append(data)
            if len(self.early) > turn.limits.frames_before_connected or sum(map(len, self.early)) > turn.limits.max_frame_bytes:
                self._end(Action.ERROR, ErrorInfo.of(80013, "too many frames before CONNECTED"))
            return
        if self.unused:
            self._used()
        verdict = self.rate.spend(turn.limits, turn.now)
        if verdict is Verdict.FAR_ABOVE:
            self._end(Action.ERROR, ErrorInfo.of(42921, "Rate limit exceeded; connection closed; metric = connection.inboundRate"))
            return
        try:
            message = decode(data, msgpack=self.msgpack)
        except Malformed as malformed:
            self._end(Action.ERROR, ErrorInfo.of(80013, f"malformed message: {malformed}"))
            return
        match message.action:
            case Action.MESSAGE:
                turn.stats.messages_in += 1
                turn.stats.bytes_in += len(data)
                self._publish(message, within=verdict is Verdict.WITHIN)
            case Action.PRESENCE:
                turn.stats.bytes_in += len(data)
                self._publish(message, within=verdict is Verdict.WITHIN)
            case Action.HEARTBEAT:
                self.say(Action.HEARTBEAT, id=message.id)
            case Action.ATTACH:
                self._attach(message)
            case Action.DETACH:
                self._detach(message)
            case Action.AUTH:
                self._auth(message)
            case Action.CLOSE:
                self.say(Action.CLOSED)
                turn.close(self.client, _NORMAL, "closed")
                self._over(closed=True)
            case Action.DISCONNECT:
                # The client drops this transport on purpose, and will resume on another: the connection lives on.
                turn.close(self.client, _NORMAL, "disconnect")
                self._over(closed=False)
            case Action.OBJECT:
                self._not_enabled(message, "LiveObjects are not enabled on this server")
            case Action.ANNOTATION:
                self._not_enabled(message, "annotations are not enabled on this server")
            case Action.SYNC:
                self._sync(message)
            case _:
                return  # unknown and server-only actions are ignored (RSF1)

    def _used(self) -> None:
        """The client sends over its new transport, so that it has read CONNECTED: the keys of the former ones are void."""
        self.unused = False
        session, links = self.session, self.desk.links
        assert session is not None, "connected"
        link = next((known for known in session.presented if known in links.by_id), None)
        if link is not None:
            self.desk.turn.send(link, Up(session.id, session.incarnation))

    # --- channels --------------------------------------------------------------------------------------------------------------------

    def _attach(self, message: ProtocolMessage) -> None:
        text = message.channel
        if text is None:
            self._end(Action.ERROR, ErrorInfo.of(80013, "malformed message: ATTACH without channel"))
            return
        before = (self.attachments or {}).get(text)
        entered = before is not None and before.granted & PRESENCE
        try:
            attachment = self._permitted(text, message, before)
        except RelayError as error:
            if before is not None:
                self._forget(before, Heard.REFUSED)
            self._channel_error(text, error.info)
            return
        channel = attachment.channel
        if attachment is before:
            if attachment.attached:
                channel = self._channel_of(attachment)
                if entered and not attachment.granted & PRESENCE:
                    self._withdraw(attachment)
                channel.changed(attachment)
                attachment.asked_again(channel.serial)
            else:
                attachment.answers += 1
            return
        if self.attachments is None:
            self.attachments = {}
        self.attachments[text] = attachment
        attachment.answers = 1
        attachment.after = message.channel_serial or None
        if attachment.params and attachment.receives and attachment.after is None and not (message.flags or 0) & Flag.ATTACH_RESUME:
            attachment.backlog = rewind_asked(attachment.params)
        if attachment.reads:
            channel.attach(attachment)
        else:
            # Publishers that may not read have no position on the channel but the one others here have learnt.
            attachment.opened(channel.serial, resumed=False, backlog=False, error=None)
            channel.detach(attachment)

    def _permitted(self, text: str, message: ProtocolMessage, before: Attachment | None) -> Attachment:
        """The attachment (`before`, if there is one) with the params and modes asked for. Raises RelayError: 40010, 40160 (or
        40161, 40311: the namespace), 40003, 90010; for a derived channel's filter 90010, 42911, 40010, 90021."""
        session, limits = self.session, self.desk.turn.limits
        assert session is not None, "connected"
        name = parse_channel(text)
        derived = name.qualifier == "filter"
        if name.qualifier is not None and not derived and name.name not in METACHANNELS:
            raise RelayError(40010, f"there is no such channel with the qualifier [{name.qualifier}] on this server")
        allowed = modes_of(session.capability.operations_on(name.resource), read_only=name.qualifier is not None)
        if not allowed:
            raise session.capability.refusal(name.name)
        params = attach_params(message.params, name.params, derived=derived)
        if name.qualifier is not None or not session.capability.permits(Operation.CHANNEL_METADATA, name.name):
            params.pop(METRICS_PARAM, None)
        asked = modes_asked(params, message.flags)
        if not asked & allowed:
            raise session.capability.refusal(name.name)
        if before is None and len(self.attachments or ()) >= limits.channels_per_connection:
            raise RelayError(90010, f"Maximum number of channels per connection ({limits.channels_per_connection}) exceeded")
        attachment = before or self._new_attachment(session, name)
        attachment.allow(asked)
        attachment.params = params or None
        attachment.echo = self.echo and params.get("echo") != "false"
        return attachment

    def _new_attachment(self, session: Session, name: ChannelName) -> Attachment:
        """Raises RelayError: for a derived channel 90010, 42911, 40010, 90021."""
        hub, turn = self.desk.hub, self.desk.turn
        if name.qualifier != "filter":
            return Attachment(self, name, hub.channel(session.app, name.log_name), None)
        most = turn.limits.filters_per_connection
        if sum(other.filter is not None for other in (self.attachments or {}).values()) >= most:
            raise RelayError(90010, f"Maximum number of derived channels per connection ({most}) exceeded")
        if not self.rate.afford(turn.limits, turn.now, turn.limits.filter_attach_cost):
            raise RelayError(42911, "Rate limit exceeded; too many derived channels in too short a time; metric = connection.inboundRate")
        expression = expression_of(name.qualifier_value)
        channel = hub.channel(session.app, name.log_name)
        try:
            return Attachment(self, name, channel, channel.filter(expression))
        except RelayError:
            hub.release(channel)
            raise

    def _channel_of(self, attachment: Attachment) -> Channel:
        """The hub forgets a channel that nobody reads; an attachment that could only publish may be about to read it."""
        attachment.channel = self.desk.hub.channel(attachment.channel.app, attachment.channel.name)
        return attachment.channel

    def _detach(self, message: ProtocolMessage) -> None:
        text = message.channel
        if text is None:
            self._end(Action.ERROR, ErrorInfo.of(80013, "malformed message: DETACH without channel"))
            return
        attachment = (self.attachments or {}).get(text)
        if attachment is not None:
            self._forget(attachment, Heard.DETACH_ASKED)
        self.say(Action.DETACHED, channel=text)

    def _sync(self, message: ProtocolMessage) -> None:
        """The client wants to know the whole presence set again."""
        attachment = (self.attachments or {}).get(message.channel or "")
        if attachment is None or not attachment.attached:
            return
        if attachment.receives_presence:
            attachment.channel.presence.due(attachment)
        else:
            self.say(Action.SYNC, channel=attachment.text, channelSerial="0:", presence=[])

    def start_sync(self, attachment: Attachment) -> None:
        """Send the whole presence set of its channel, as fast as the client takes it."""
        if self.state is State.CONNECTED:
            if self.syncs is None:
                self.syncs = Syncs(self)
            self.syncs.start(attachment)

    def stop_sync(self, attachment: Attachment) -> bool:
        """Whether one was under way."""
        return self.syncs is not None and self.syncs.stop(attachment)

    def drained(self) -> None:
        """The client has taken everything written so far."""
        if self.syncs is not None:
            self.syncs.drained()

    def _withdraw(self, attachment: Attachment) -> None:
        """Its members leave: all that this connection has on the channel, unless another attachment to it is left."""
        session = self.session
        assert session is not None, "connected"
        if attachment.filter is not None:
            return  # nobody enters through a derived channel
        entered, attachment.entered = attachment.entered, None
        leaving = dict.fromkeys(entered or ())
        channel = attachment.channel
        others = (other for other in (self.attachments or {}).values() if other is not attachment and other.granted & PRESENCE)
        if not any(other.channel.key == channel.key for other in others):
            leaving |= dict.fromkeys(channel.presence.members_of(session.id))
        if leaving:
            leave(self.desk.hub, session, channel.name, leaving, self.desk.new_id)

    def channel_dropped(self, attachment: Attachment, error: ErrorInfo) -> None:
        """Unsolicited DETACHED: the client attaches and enters again by itself (RTL13)."""
        attachment.step(Heard.REFUSED)
        if self.attachments is not None and self.attachments.get(attachment.text) is attachment:
            del self.attachments[attachment.text]
        attachment.channel.detach(attachment)
        self.desk.turn.stats.refusals[error.code] += 1
        self.say(Action.DETACHED, channel=attachment.text, error=error)

    def _forget(self, attachment: Attachment, why: Heard) -> None:
        if self.state is State.CONNECTED:
            self._withdraw(attachment)
        attachment.step(why)
        if self.attachments is not None and self.attachments.get(attachment.text) is attachment:
            del self.attachments[attachment.text]
        attachment.channel.detach(attachment)

    def channel_failed(self, attachment: Attachment, action: Action, error: ErrorInfo) -> None:
        """The core refused the channel; the attachment has been stepped already, and the hub has let go of it."""
        if self.state is State.CONNECTED and action is Action.ERROR:
            self._withdraw(attachment)
        if self.attachments is not None and self.attachments.get(attachment.text) is attachment:
            del self.attachments[attachment.text]
        if self.state is State.CONNECTED:
            self.desk.turn.stats.refusals[error.code] += 1
            self.say(action, channel=attachment.text, error=error)

    def _channel_error(self, text: str, error: ErrorInfo) -> None:
        """What passes (a rate) makes the client try again (DETACHED)."""
        self.desk.turn.stats.refusals[error.code] += 1
        self.say(Action.DETACHED if error.code in _RETRIABLE else Action.ERROR, channel=text, error=error)

    # --- publishing ------------------------------------------------------------------------------------------------------------------

    def _publish(self, message: ProtocolMessage, *, within: bool) -> None:
        answer, again = self._question(message)
        if answer is None:
            return
        repeat = again or self.repeats > 0
        try:
            publish = self._presence(message, repeat=repeat) if message.action == Action.PRESENCE else self._messages(message)
        except RelayError as error:
            self._settle(answer, error=error.info)
            return
        size, base = publish.size, publish.base
        self.repeats -= self.repeats > 0
        untold = self.turned_away
        if untold is not None and untold.error is not None and self.answers is not None and self.answers[0].serial <= untold.serial:
            # Not told yet, and never if the connection drops now: then it is sent again, and this must not be in the log before it.
            self._settle(answer, error=untold.error)
            return
        try:
            self._make_room(size, within=within)
        except RelayError as error:
            if repeat:
                self._doubt()
            else:
                self.turned_away = answer
                self._settle(answer, error=error.info)
            return
        if self.doubt_at < float("inf"):
            return  # what is in doubt comes again, and this after it
        session = self.session
        assert session is not None, "connected"
        answer.count = len(publish.messages)
        answer.text = message.channel or ""
        self.unanswered_bytes += size
        if self.by_append is None:
            self.by_append = {}
        append = self.desk.hub.append(
            session,
            publish.channel,
            f"i:{base}" if base is not None else f"c:{session.id}:{answer.serial}",
            publish.messages,
            self,
            size,
            # Only a first send on a connection without history can be told apart from a repetition by its id alone.
            fresh=base is None and not repeat and self.epoch == self.desk.links.losses,
            ephemeral=publish.ephemeral,
            presence=publish.presence,
        )
        answer.append = append
        self.by_append[append.frame.req] = answer
        attachment = (self.attachments or {}).get(answer.text) if publish.presence else None
        if attachment is not None:
            if attachment.entered is None:
                attachment.entered = Entered()
            attachment.entered.asked(publish.presence)
        if len(self.by_append) == 1:
            self._arm()

    def _messages(self, message: ProtocolMessage) -> Publish:
        """Raises RelayError.

        In this order: 40010, 40160, 40165, 40099, then what is said of the messages themselves.
        """
        session = self.session
        assert session is not None, "connected"
        name = parse_channel(message.channel or "")
        if name.qualifier == "meta":
            raise RelayError(40160, "operation not permitted: metachannels are read-only")
        if name.qualifier is not None:
            raise RelayError(40010, f"publishing to channels with the qualifier [{name.qualifier}] is not permitted")
        operations = session.capability.operations_on(name.name)
        if Operation.PUBLISH not in operations:
            raise session.capability.refusal(name.name)
        attachment = (self.attachments or {}).get(name.text)
        if attachment is not None and attachment.attached and not attachment.granted & PUBLISH:
            raise RelayError(40165, "operation not permitted: the channel was attached without the publish mode")
        params = publish_params(message.params)
        if params.get("_forceNack") == "true":
            raise RelayError(40099, "refused as asked (_forceNack)")
        messages = messages_from_wire([] if message.messages is None else message.messages, json=not self.msgpack)
        base = settle(
            messages,
            client_id=session.client_id,
            connection_id=session.id,
            max_bytes=self.desk.turn.limits.max_message_bytes,
            privileged=Operation.PRIVILEGED_HEADERS in operations,
        )
        size = sum(64 + len(each.data or "") for each in messages)
        return Publish(name.name, size, messages, [], base, is_ephemeral(messages) or params.get("ephemeral") == "true")

    def _presence(self, message: ProtocolMessage, *, repeat: bool) -> Publish:
        """Raises RelayError.

        In this order: 40010, 40160, 91001, 40165, then what is said of the changes themselves. What may be a repetition after a resume need
        not wait for the channel to be attached again (RTL3d): what it says may be in the log already.
        """
        session = self.session
        assert session is not None, "connected"
        items = presence_from_wire([] if message.presence is None else message.presence, json=not self.msgpack)
        name = parse_channel(message.channel or "")
        if name.qualifier == "meta":
            raise RelayError(40160, "operation not permitted: metachannels are read-only")
        if name.qualifier is not None:
            raise RelayError(40010, f"channels with the qualifier [{name.qualifier}] have no members")
        if Operation.PRESENCE not in session.capability.operations_on(name.name):
            raise session.capability.refusal(name.name)
        attachment = (self.attachments or {}).get(name.text)
        if attachment is None or not attachment.attached:
            if not repeat:
                raise RelayError(91001, "unable to change presence: the channel is not attached")
        elif not attachment.granted & PRESENCE:
            raise RelayError(40165, "operation not permitted: the channel was attached without the presence mode")
        settle_presence(items, client_id=session.client_id, connection_id=session.id, max_bytes=self.desk.turn.limits.max_message_bytes)
        return Publish(name.name, sum(64 + len(each.client_id) + len(each.data or "") for each in items), [], items)

    def _make_room(self, size: int, *, within: bool) -> None:
        """Raises RelayError: 42911 for what this connection has used up, 50003 for what the edge has."""
        hub, limits = self.desk.hub, self.desk.turn.limits
        if not within:
            raise RelayError(42911, "Rate limit exceeded; request rejected (nonfatal); metric = connection.inboundRate")
        if len(self.answers or ()) > limits.unanswered_publishes or self.unanswered_bytes + size > limits.unanswered_bytes:
            raise RelayError(42911, "Rate limit exceeded; request rejected (nonfatal); metric = connection.unacknowledged")
        if hub.unanswered_bytes + size > limits.total_unanswered_bytes:
            raise RelayError(50003, "this server has too many publishes under way; try again")

    def _question(self, message: ProtocolMessage) -> tuple[Answer | None, bool]:
        """A place in the order of answers, and whether this msgSerial has been seen before.

        A client re-sends what was not acknowledged under the same msgSerial, after a resume. What was published then is found by its id,
        and the ACK carries the serials of the first time. A repetition of what is still unanswered is left to the one answer.
        """
        serial = message.msg_serial
        if serial is None:
            self._end(Action.ERROR, ErrorInfo.of(80013, "malformed message: a publish without msgSerial"))
            return None, False
        if self.answers is None:
            self.answers = deque()
        again = serial < self.expected
        if again and any(answer.serial == serial for answer in self.answers):
            return None, True
        answer = Answer(serial, self.desk.turn.now)
        self.answers.append(answer)
        if not again:
            self.expected = serial + 1
        return answer, again

    def _not_enabled(self, message: ProtocolMessage, why: str) -> None:
        answer, _ = self._question(message)
        if answer is not None:
            self._settle(answer, error=ErrorInfo.of(40000, why))

    def _settle(self, answer: Answer, *, error: ErrorInfo | None = None, serials: list[str] | None = None) -> None:
        answer.done = True
        answer.error = error
        answer.serials = serials
        answer.append = None
        if error is not None:
            self.desk.turn.stats.nacks[error.code] += 1
        if self.answers and self.answers[0].done:
            self.desk.to_flush[self] = None

    def _taken(self, append: PendingAppend) -> Answer | None:
        answer = self.by_append.pop(append.frame.req, None) if self.by_append is not None else None
        if answer is not None:
            self.unanswered_bytes -= append.size
        return answer

    def appended(self, append: PendingAppend, serial: str) -> None:
        answer = self._taken(append)
        if answer is not None:
            if append.frame.presence:
                self._presence_appended(append, answer.text, serial)
            self._settle(answer, serials=[message_serial(serial, index) for index in range(answer.count)])

    def append_refused(self, append: PendingAppend, error: ErrorInfo) -> None:
        answer = self._taken(append)
        if answer is not None:
            attachment = (self.attachments or {}).get(answer.text) if append.frame.presence else None
            if attachment is not None and attachment.entered is not None:
                attachment.entered.refused(append.frame.presence)
            self._settle(answer, error=error)

    def _presence_appended(self, append: PendingAppend, text: str, serial: str) -> None:
        """Who may not read the channel is told of its own members all the same (RTP17a), and no record will do it."""
        attachment = (self.attachments or {}).get(text)
        if attachment is None or attachment.entered is None:
            return
        frame = append.frame
        changed = attachment.entered.appended(frame.presence)
        for other in (self.attachments or {}).values():
            # Whoever left through one spelling of the channel need not be remembered by another.
            if other is not attachment and other.entered is not None and other.channel.key == attachment.channel.key:
                other.entered.appended([item for item in frame.presence if item.action == PresenceAction.LEAVE])
        if attachment.reads or not attachment.attached or not changed:
            return
        body = RecordBody(frame.id.removeprefix("c:"), self.desk.turn.now_ms, frame.session)
        shown = [
            Shown(item.action, item.client_id, item.id or f"{body.id}:{index}", item.data, item.encoding, item.extras)
            for index, item in changed
        ]
        self.desk.turn.write(self.client, self.wire.presence(body, shown, text, serial))

    def append_unknown(self, append: PendingAppend) -> None:
        """Nobody can say whether it is in the log: the client sends it again under its id, and the log decides."""
        if self._taken(append) is not None:
            self._doubt()

    def _doubt(self) -> None:
        """Not at once: while Kafka is away, thousands of clients would come back at once, with all that they have."""
        self.doubt_at = min(self.doubt_at, self.desk.turn.now + self.desk.turn.limits.unknown_wait_s)
        self._arm()

    def flush(self) -> None:
        """Send the answers that are in turn. Consecutive ACKs share one message (at most 500 publishes each)."""
        answers = self.answers
        while answers and answers[0].done:
            first = answers.popleft()
            if first.error is not None:
                self.say(Action.NACK, msgSerial=first.serial, count=1, error=first.error)
                continue
            results = [{"serials": first.serials or []}]
            while (
                answers
                and answers[0].done
                and answers[0].error is None
                and answers[0].serial == first.serial + len(results)
                and len(results) < 500
            ):
                results.append({"serials": answers.popleft().serials or []})
            self.say(Action.ACK, msgSerial=first.serial, count=len(results), res=results)

    # --- authentication --------------------------------------------------------------------------------------------------------------

    def _auth(self, message: ProtocolMessage) -> None:
        session = self.session
        assert session is not None, "connected"
        auth = message.auth if isinstance(message.auth, dict) else {}
        texts = {name: value for name, value in auth.items() if isinstance(value, str)}
        try:
            credential = self._presentable(credential_of(texts, {}))
        except RelayError as error:
            self.refuse(error.info)
            return
        if self.admission is not None:
            # An earlier one is still on its way; its answer means nothing any more.
            self.admission.applicant = None
        turn = self.desk.turn
        self._admit(
            Admit(
                req=turn.request(),
                credential=credential.text,
                basic=credential.basic,
                realtime=True,
                tls=self.tls,
                version=self.version,
                client_id=self.client_id,
                session=session.id,
                address=self.address,
                remain_present_ms=self.remain_present_ms,
            )
        )

    def _reauthenticated(self, frame: Admitted, link: int) -> None:
        """CONNECTED first, then what changes on the channels (RTC8a1)."""
        session = self.session
        assert session is not None, "connected"
        if frame.session != session.id or frame.app != session.app or not _compatible(session.client_id, frame.client_id):
            self._end(Action.ERROR, ErrorInfo.of(40102, "the new credentials are not compatible with this connection"))
            return
        self.desk.links.present_anew(session, session.take(frame, link))
        self.key = frame.key or self.key
        self.auth_asked = False
        self.admitted_ms = self.desk.turn.now_ms
        self._connected(None)
        self._schedule_renewal()
        self._arm()
        for attachment in list((self.attachments or {}).values()):
            before, read = attachment.granted, attachment.reads
            if not attachment.allow(attachment.asked):
                self._forget(attachment, Heard.REFUSED)
                self._channel_error(attachment.text, session.capability.refusal(attachment.name).info)
            elif attachment.attached and (attachment.granted, attachment.reads) != (before, read):
                channel = self._channel_of(attachment)
                if before & PRESENCE and not attachment.granted & PRESENCE:
                    self._withdraw(attachment)
                channel.changed(attachment)
                attachment.told_anew(channel.serial)
            else:
                self.desk.occupancies.settle(attachment)  # others may be told by its right

    def renewed(self, frame: Admitted, link: int) -> None:
        """Answer to `Renew`: the same rights for some minutes more."""
        self.renewal = None
        if self.state is State.CONNECTED and self.session is not None and frame.session == self.session.id:
            self.desk.links.present_anew(self.session, self.session.take(frame, link))
            self._schedule_renewal()
            self._arm()

    def renewal_refused(self, error: ErrorInfo) -> None:
        self.renewal = None
        if self.state is not State.CONNECTED:
            return
        if error.status_code >= 500 or error.status_code == 429:
            self.renew_at = self.desk.turn.now + _LIVE_RETRY_S
            self._arm()
        elif error.code == 40101:
            # The grant ended first (no core was there to renew it). The credentials themselves are judged when the client is back.
            self.disconnect(error)
        else:
            self.revoked(error)

    def renewal_lost(self) -> None:
        """The link with the question on it is gone: ask again."""
        self.renewal = None
        if self.state is State.CONNECTED:
            self.renew_at = self.desk.turn.now
            self._arm()

    def revoked(self, error: ErrorInfo) -> None:
        """The rights are void. What a new token or a new connection can mend is DISCONNECTED; a dead key is ERROR."""
        mendable = 40140 <= error.code < 40150 or error.status_code >= 500 or error.code >= 80000
        self._end(Action.DISCONNECTED if mendable else Action.ERROR, error)

    def will_be_revoked(self) -> None:
        """Ask for other credentials, once: several cores may say so."""
        if self.state is State.CONNECTED and not self.auth_asked:
            self.auth_asked = True
            self.say(Action.AUTH)

    def _schedule_renewal(self) -> None:
        session = self.session
        assert session is not None, "connected"
        turn = self.desk.turn
        life = (session.grant_expires - turn.now_ms) / 1000
        # Spread over the clients by their number: grants that were made together must not be renewed together.
        early = min(turn.limits.grant_renewal_s * (1 + self.client % 16 / 16), life / 2)
        self.renew_at = turn.now + max(life - early, 1.0)

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """One appointment for whatever comes first."""
        turn, session = self.desk.turn, self.session
        at = min(self.next_beat, self.renew_at, self.doubt_at, self.heard_at + self.interval + _DEAD_AFTER_S + TICK)
        if session is not None and session.token_expires is not None:
            expires = turn.mono(session.token_expires)
            at = min(at, expires)
            if not self.auth_asked and self._wants_notice(session.token_expires):
                at = min(at, expires - turn.limits.auth_notice_s)
        if self.answers and self.by_append:
            at = min(at, self.answers[0].asked_at + turn.limits.publish_wait_s)
        turn.wheel.schedule(self, max(at, turn.now))

    def _wants_notice(self, expires_ms: int) -> bool:
        """A token that lives no longer than the notice is not worth asking for another."""
        return expires_ms - self.admitted_ms > self.desk.turn.limits.auth_notice_s * 1000

    def wake(self) -> None:
        turn, session = self.desk.turn, self.session
        if self.state is State.CONNECTING:
            self._waited_in_vain()
            return
        if self.state is State.OVER or session is None:
            return
        if session.token_expires is not None:
            if turn.now_ms >= session.token_expires:
                self.disconnect(ErrorInfo.of(40142, "Token expired"))
                return
            notice = session.token_expires - turn.limits.auth_notice_s * 1000
            if not self.auth_asked and turn.now_ms >= notice and self._wants_notice(session.token_expires):
                self.auth_asked = True
                self.say(Action.AUTH)
        if turn.now - self.heard_at > self.interval + _DEAD_AFTER_S:
            turn.close(self.client, _NORMAL, "dead")
            self._over(closed=False)
            return
        if turn.now_ms >= session.grant_expires and not self.desk.links.by_id:
            self.disconnect(ErrorInfo.of(50320, "this server has lost its connection to its core; connect to another one"))
            return
        if turn.now >= self.doubt_at:
            self.disconnect(ErrorInfo.of(50003, "the outcome of a publish is not known; it will be settled on reconnecting"))
            return
        if self.answers and self.by_append and turn.now - self.answers[0].asked_at >= turn.limits.publish_wait_s:
            self.disconnect(ErrorInfo.of(50003, "a publish was not confirmed in time; it will be settled on reconnecting"))
            return
        if turn.now >= self.next_beat:
            self.next_beat = turn.now + self.interval * 2 / 3
            turn.write(self.client, (MSGPACK_BEAT if self.msgpack else JSON_BEAT) if self.heartbeats else PING)
            self.desk.links.keep_known(session)
        if turn.now >= self.renew_at:
            self._renew(session)
        self._arm()

    def _renew(self, session: Session) -> None:
        turn = self.desk.turn
        self.renew_at = turn.now + _LIVE_RETRY_S
        if self.renewal is not None:
            return
        links = self.desk.links
        link = next((known for known in session.presented if known in links.by_id), None)
        if link is None:
            some = links.any()
            if some is None:
                return
            link = some.id
        links.present_for_call(session, link)
        self.renewal = turn.request()
        self.desk.renewals[self.renewal] = (link, self)
        turn.send(link, Renew(self.renewal, session.id))

    def _waited_in_vain(self) -> None:
        turn = self.desk.turn
        waited = turn.now - self.opened_at
        if not self.desk.links.by_id:
            self.refuse(ErrorInfo.of(50320, "this server has no connection to its core; connect to another one"))
        elif waited < turn.limits.admit_wait_s:
            turn.wheel.schedule(self, self.opened_at + turn.limits.admit_wait_s)
        else:
            self.refuse(ErrorInfo.of(50003, "the credentials could not be checked in time"))


JSON_BEAT = JSON.frame(Action.HEARTBEAT) + PING
MSGPACK_BEAT = MSGPACK.frame(Action.HEARTBEAT) + PING
"""A heartbeat for the client's timer, and a ping that the client's socket answers: that is how a dead peer is found."""


def presentable(credential: Credential, desk: Desk, *, tls: bool, realtime: bool) -> Credential:
    """Raises RelayError for what no core needs to see."""
    policy = desk.policy
    if credential.basic:
        if policy.basic_auth == "refuse" or (realtime and policy.basic_auth == "rest"):
            raise RelayError(40101, KEY_HINT)
        if not tls and not policy.dev:
            raise RelayError(40103, BASIC_WITHOUT_TLS)
        if ":" not in credential.text:
            raise RelayError(40101, "invalid credentials: malformed key")
    elif "." not in credential.text:
        raise RelayError(40101, "invalid credentials: not a token")
    elif is_dead(credential.text, desk.turn.now_ms):
        raise RelayError(40142, "Token expired")
    return credential


def _compatible(before: str | None, after: str | None) -> bool:
    """Whether the connection may go on as `after`. A connection that could be anyone may become someone, and nobody may change."""
    return before in (after, "*")
