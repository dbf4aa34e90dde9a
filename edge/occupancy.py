"""How many are attached here, as the cores are told, and how many there are everywhere, as clients are told.
Source: Ably protocol docs, 10.2 to 10.4.

Counting. Every attachment counts for its channel, however it spells it, in each category whose mode it was granted. A change is reported
at once, further ones a second later, the last state always. What was said on a link that is lost is said again on another, zeros included:
nobody can tell whether the core had written it down.

Watching. Who attached with the param `occupancy` gets a message when the cores' sums change. Those may be behind what this edge knows of
its own clients, so that the larger of both is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.ably.channel_params import METRICS_PARAM
from edge.ably.protocol import Action, Mode
from edge.turn import TICK, Timed
from relay.link.frames import Counts, Watch
from relay.link.frames import Occupancy as OccupancyFrame
from relay.model.capability import Operation
from relay.model.channel import is_qualified
from relay.model.occupancy import ATTACHED, METRICS, metrics

if TYPE_CHECKING:
    from edge.attachment import Attachment
    from edge.hub import Channel, Hub
    from edge.links import Links
    from edge.turn import Turn

_MODES = (
    0,
    int(Mode.PUBLISH),
    int(Mode.SUBSCRIBE),
    int(Mode.PRESENCE),
    int(Mode.PRESENCE_SUBSCRIBE),
    int(Mode.OBJECT_PUBLISH),
    int(Mode.OBJECT_SUBSCRIBE),
)
"""The mode that makes an attachment count, in the order of `ATTACHED`; every one is a connection."""
_REMEMBERED_S = 10.0
"""How long zeros are remembered: the link that carried them may have been dead, and is found to be within seconds."""
NAME = "[meta]occupancy"

_encode = msgspec.json.Encoder().encode


class _Tally(Timed):
    """The attachments of one channel here."""

    __slots__ = ("app", "attachments", "counts", "key", "link", "name", "next_at", "occupancies", "sent")

    def __init__(self, occupancies: Occupancies, app: str, name: str, key: bytes) -> None:
        self.occupancies = occupancies
        self.app = app
        self.name = name
        self.key = key
        self.attachments: dict[Attachment, int] = {}
        """Each with the modes that it is counted for."""
        self.counts = [0] * len(ATTACHED)
        self.sent: list[int] | None = None
        """What the core at `link` was told."""
        self.link: int | None = None
        self.next_at = 0.0

    def count(self, granted: int, by: int) -> None:
        for index, mode in enumerate(_MODES):
            if not index or granted & mode:
                self.counts[index] += by

    def wake(self) -> None:
        self.occupancies.due(self)


class _Watched:
    """A channel of which somebody here wants to know."""

    __slots__ = ("attachments", "counts", "witness")

    def __init__(self, witness: Attachment) -> None:
        self.witness = witness
        """Whose right it is that the core is asked by."""
        self.attachments: dict[Attachment, tuple[str, dict[str, int] | None]] = {}
        """Each with its param and with what it was shown last."""
        self.counts: Sequence[int] | None = None
        """What the core said last, in the order of `METRICS`."""


class Occupancies(Timed):
    """Of one edge process. `new_id` makes ids of messages."""

    __slots__ = (
        *("_allowance", "_allowance_at", "_behind", "_emptied", "_hub", "_links", "_number"),
        *("_new_id", "_tallies", "_turn", "_watched"),
    )

    def __init__(self, turn: Turn, links: Links, hub: Hub, new_id: Callable[[], str]) -> None:
        self._turn = turn
        self._links = links
        self._hub = hub
        self._new_id = new_id
        self._tallies: dict[bytes, _Tally] = {}
        """By log key."""
        self._behind: dict[_Tally, None] = {}
        """Reports that wait for a link, or for their turn."""
        self._emptied: dict[_Tally, float] = {}
        """Channels whose zeros have been reported, until when to remember them; the oldest first."""
        self._watched: dict[bytes, _Watched] = {}
        self._number = 0
        self._allowance = float(turn.limits.counts_per_s)
        self._allowance_at = 0.0

    def __len__(self) -> int:
        return len(self._tallies)

    def settle(self, attachment: Attachment) -> None:
        """Something about it may have changed: whether it is attached, its modes, its params."""
        key = attachment.channel.key
        if is_qualified(key):
            return  # how many read a metachannel is nobody's business
        tally = self._tallies.get(key)
        granted = attachment.granted if attachment.attached else None
        counted = None if tally is None else tally.attachments.get(attachment)
        if granted != counted:
            if tally is None:
                tally = self._tallies[key] = _Tally(self, attachment.channel.app, attachment.channel.name, key)
            if counted is not None:
                tally.count(counted, -1)
                del tally.attachments[attachment]
            if granted is not None:
                tally.count(granted, +1)
                tally.attachments[attachment] = granted
            self.due(tally)
        param = (attachment.params or {}).get(METRICS_PARAM) if granted is not None and attachment.reads else None
        if param is not None and not attachment.session.capability.permits(Operation.CHANNEL_METADATA, attachment.channel.name):
            param = None  # it was, before another token
        watched = self._watched.get(key)
        if param is not None:
            self._watch(attachment, param)
        elif watched is not None and attachment in watched.attachments:
            self._unwatch(attachment, watched)

    # --- counting --------------------------------------------------------------------------------------------------------------------

    def due(self, tally: _Tally) -> None:
        """Report it if there is something to report, as soon as that may be."""
        turn = self._turn
        if tally.sent == tally.counts or (tally.sent is None and tally.link is None and not any(tally.counts)):
            self._behind.pop(tally, None)
            if not any(tally.counts):
                self._remember(tally)
            return
        self._emptied.pop(tally, None)
        if turn.now < tally.next_at:
            turn.wheel.schedule(tally, tally.next_at)
        elif tally not in self._behind:
            self._behind[tally] = None
            self._report()

    def _remember(self, tally: _Tally) -> None:
        """Its zeros have been reported: keep it a little, in case they were not heard."""
        self._emptied.setdefault(tally, self._turn.now + _REMEMBERED_S)
        self._forget()

    def _forget(self) -> None:
        while self._emptied:
            oldest, until = next(iter(self._emptied.items()))
            if until > self._turn.now and len(self._emptied) <= self._turn.limits.emptied_channels:
                break
            del self._emptied[oldest]
            if self._tallies.get(oldest.key) is oldest and not oldest.attachments:
                del self._tallies[oldest.key]
                self._turn.wheel.cancel(oldest)
        self._arm()

    def _arm(self) -> None:
        """One appointment for whatever comes first."""
        at = self._turn.now + TICK if self._behind and self._links.by_id else float("inf")
        at = min(at, next(iter(self._emptied.values()), at))
        if at != float("inf"):
            self._turn.wheel.schedule(self, at)

    def _report(self) -> None:
        """Of those that wait, as many as may go."""
        turn, links = self._turn, self._links
        most = float(turn.limits.counts_per_s)
        self._allowance = min(most, self._allowance + (turn.now - self._allowance_at) * most)
        self._allowance_at = turn.now
        while self._behind and links.by_id:
            tally = next(iter(self._behind))
            link = links.pick(tally.key)
            if self._allowance < 1:
                self._arm()
                return
            del self._behind[tally]
            if link is None:
                tally.link = None  # until a link comes up that serves it
                continue
            self._allowance -= 1
            session = ""
            if tally.attachments:
                some = next(iter(tally.attachments)).session
                links.present(some, link.id)
                session = some.id
            self._number += 1
            turn.send(link.id, Counts(self._number, tally.app, tally.name, list(tally.counts), session))
            tally.link, tally.sent, tally.next_at = link.id, list(tally.counts), turn.now + turn.limits.counts_interval_s
            if not any(tally.counts):
                self._remember(tally)

    def wake(self) -> None:
        self._report()
        self._forget()

    def link_up(self) -> None:
        for tally in self._tallies.values():
            if tally.link is None and tally.sent != tally.counts:
                self._behind[tally] = None
        self._report()

    def link_lost(self, link: int) -> None:
        """What was said there may have been lost with it."""
        for tally in self._tallies.values():
            if tally.link == link:
                tally.sent = None
                self._emptied.pop(tally, None)
                self._behind[tally] = None
        self._report()

    # --- watching --------------------------------------------------------------------------------------------------------------------

    def _watch(self, attachment: Attachment, param: str) -> None:
        key = attachment.channel.key
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(attachment)
            watched.attachments[attachment] = (param, None)
            self._ask(watched)
        else:
            before = watched.attachments.get(attachment)
            if before is None or before[0] != param:
                watched.attachments[attachment] = (param, None)
        if watched.counts is not None:
            self._show(attachment, watched, {})

    def _unwatch(self, attachment: Attachment, watched: _Watched) -> None:
        del watched.attachments[attachment]
        channel = self._hub.channels.get(attachment.channel.key)
        if not watched.attachments:
            del self._watched[attachment.channel.key]
            if channel is not None and channel.ref and channel.link is not None:
                self._turn.send(channel.link, Watch(channel.ref, on=False))
        elif watched.witness is attachment:
            watched.witness = next(iter(watched.attachments))
            self._ask(watched)

    def _ask(self, watched: _Watched) -> None:
        channel = self._hub.channels.get(watched.witness.channel.key)
        if channel is not None and channel.ref and channel.link is not None:
            session = watched.witness.session
            self._links.present(session, channel.link)
            self._turn.send(channel.link, Watch(channel.ref, on=True, session=session.id))

    def opening(self, channel: Channel) -> None:
        """The channel has been asked for, perhaps of another core."""
        watched = self._watched.get(channel.key)
        if watched is not None:
            self._ask(watched)

    def told(self, channel: Channel, frame: OccupancyFrame) -> None:
        watched = self._watched.get(channel.key)
        if watched is None or frame.ref != channel.ref or len(frame.counts) < len(METRICS):
            return
        watched.counts = frame.counts[: len(METRICS)]
        frames: dict[Any, bytes] = {}
        for attachment in list(watched.attachments):
            self._show(attachment, watched, frames)

    def _show(self, attachment: Attachment, watched: _Watched, frames: dict[Any, bytes]) -> None:
        """`frames`: what others were sent of the same state."""
        if not attachment.session.capability.permits(Operation.CHANNEL_METADATA, attachment.channel.name):
            self._unwatch(attachment, watched)
            return
        param, before = watched.attachments[attachment]
        shown = self._visible(attachment.channel.key, watched, param)
        if shown == before:
            return
        watched.attachments[attachment] = (param, shown)
        wire, text = attachment.wire, attachment.text
        frame = frames.get((wire, text, param))
        if frame is None:
            frame = frames[wire, text, param] = wire.frame(
                Action.MESSAGE,
                channel=text,
                id=f"{self._new_id()}:0",
                timestamp=self._turn.now_ms,
                messages=[{"name": NAME, "data": _encode({"metrics": shown}).decode(), "encoding": "json"}],
            )
        self._turn.write(attachment.client, frame)

    def _visible(self, key: bytes, watched: _Watched, param: str) -> dict[str, int]:
        counts = list(watched.counts or ())
        tally = self._tallies.get(key)
        if tally is not None:
            for index, here in enumerate(tally.counts):
                counts[index] = max(counts[index], here)
        every = metrics(counts)
        _, _, category = param.partition(".")
        return {category: every[category]} if category else every
