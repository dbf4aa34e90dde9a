"""Several cores in a script, over one log and one sessions topic, with a clock that all of them see."""

from __future__ import annotations

from typing import Any

import msgspec

from core.effects import Produce
from core.events import EdgeLost, Looked, Owned, Reported, StateRead, Tailed
from core.fold import Fold
from core.log import LogRecord
from core.presence import PartitionPresence
from relay.link import calls
from relay.link.frames import Admit, Admitted, Append, Depart, Fetch, Open, Opened, Page, Record
from relay.model.channel import log_key, partition_of
from relay.model.limits import CoreLimits
from relay.model.message import Kind, PresenceAction, PresenceItem, RecordBody
from tests.unit.core.dialogue import EDGE, OTHER_EDGE, SECRET, STREAM, Dialogue

ALL = frozenset(range(STREAM.partitions))
ENTER, LEAVE, UPDATE = int(PresenceAction.ENTER), int(PresenceAction.LEAVE), int(PresenceAction.UPDATE)
"""As they come from the wire."""
decode = msgspec.msgpack.Decoder(RecordBody).decode


def place(channel: str, app: str = "shop") -> tuple[int, bytes]:
    key = log_key(app, channel)
    return partition_of(key, STREAM.partitions), key


class Cluster:
    """Edge e1 (boot-1) is link 1 and edge e2 (boot-2) link 2 of every core. The first core owns everything, unless told otherwise."""

    def __init__(self, cores: int = 1, **limits: Any) -> None:
        self.limits = CoreLimits(**limits)
        self.log: list[list[LogRecord]] = [[] for _ in range(STREAM.partitions)]
        self.ends = dict.fromkeys(range(STREAM.partitions), 0)
        self.sessions: list[Any] = []
        self.cores: list[Dialogue] = []
        self.held: list[tuple[Dialogue, Produce]] | None = None
        """What Kafka keeps to itself, if it does."""
        self.deaf: set[Dialogue] = set()
        """Cores whose tail stands still."""
        self.unheard: dict[Dialogue, list[LogRecord]] = {}
        for number in range(cores):
            self.start(number, owns=ALL if number == 0 else frozenset())
        for link, identity, boot in ((1, EDGE, "boot-1"), (2, OTHER_EDGE, "boot-2")):
            for core in self.cores:
                core.edge_up(link, identity, boot)
        self.settle()

    def __getitem__(self, number: int) -> Dialogue:
        return self.cores[number]

    def start(self, number: int, *, owns: frozenset[int] = ALL, checkpoint: int | None = None) -> Dialogue:
        """A core from nothing but topics: state up to `checkpoint` in each partition (or its end), the log, the sessions."""
        first = self.cores[0] if self.cores else None
        core = Dialogue(limits=self.limits, name=f"core-{number + 1}", ready=False, owner=False, restored=False)
        if first is not None:
            core.now, core.now_ms = first.now, first.now_ms
        core.ends = self.ends
        for partition, records in enumerate(self.log):
            at = None if checkpoint is None else min(checkpoint, len(records))
            core.happens(StateRead(partition, at, {} if at is None else self.state(partition, at)))
        assert not core.node.ready
        for session in self.sessions:
            core.happens(session)
        for partition, records in enumerate(self.log):
            core.happens(Tailed(list(records)))
            core.happens(Looked(partition, 0, len(records)))
        core.happens(Owned(owns))
        core.written = self.sessions
        self.cores[number : number + 1] = [core]
        for one in self.cores:
            one.peers = [other for other in self.cores if other is not one]
        core.tick()
        assert core.node.ready
        return core

    def state(self, partition: int, checkpoint: int) -> dict[bytes, bytes]:
        fold, view = Fold(100_000, b"x"), PartitionPresence()
        view.journal = journal = {}
        for record in self.log[partition][:checkpoint]:
            if fold.see(partition, record.key, record.id, record.timestamp, record.offset) is None and record.kind:
                view.apply(record, 0.0)
        return {key: value for key, value in journal.items() if value is not None}

    def kill(self, number: int) -> None:
        """Its effects that are not written yet are lost with it."""
        core = self.cores[number]
        core.effects.clear()
        self.cores.remove(core)
        for one in self.cores:
            one.peers = [other for other in self.cores if other is not one]

    # --- time and topics ------------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Until nothing is on its way any more."""
        for _ in range(1_000):
            before = (len(self.sessions), sum(map(len, self.log)))
            for core in self.cores:
                core.turns()
                core.sessions_round()
                core.answer_ends()
            self.writes()
            if before == (len(self.sessions), sum(map(len, self.log))):
                return
        raise AssertionError("the cluster never comes to rest")

    def writes(self) -> None:
        """Kafka takes in what the cores have appended, reports it, and every core reads it."""
        for core in list(self.cores):
            for produce in core.take(Produce):
                if self.held is not None:
                    self.held.append((core, produce))
                else:
                    self.write(core, produce)

    def write(self, core: Dialogue, produce: Produce, *, reported: bool = True) -> LogRecord:
        records = self.log[produce.partition]
        record = LogRecord(
            STREAM.id, produce.partition, len(records), core.now_ms, produce.key, produce.value, int(produce.kind), produce.id
        )
        records.append(record)
        self.ends[produce.partition] = len(records)
        if reported:
            core.happens(Reported(produce.ticket, produce.partition, record.offset))
        for one in self.cores:
            if one in self.deaf:
                self.unheard.setdefault(one, []).append(record)
            else:
                one.happens(Tailed([record]))
        return record

    def hears(self, core: Dialogue) -> None:
        self.deaf.discard(core)
        core.happens(Tailed(self.unheard.pop(core, [])))

    def thaw(self) -> None:
        held, self.held = self.held or [], None
        for core, produce in held:
            self.write(core, produce)
        self.settle()

    def wait(self, seconds: float, step: float = 0.5) -> None:
        for _ in range(round(seconds / step)):
            for core in self.cores:
                core.tick(step)
            self.settle()

    # --- what clients do ------------------------------------------------------------------------------------------------------------

    def connect(self, core: int = 0, link: int = 1, **more: Any) -> Admitted:
        """With an API key that may be anybody, or a token as `credential`."""
        one = self.cores[core]
        credential = more.pop("credential", f"shop.all:{SECRET}")
        frame = Admit(one.req(), credential, ":" in credential, more.pop("realtime", True), True, 6, **more)
        one.edge_sends(frame, link)
        self.settle()
        answer = one.answer(frame.req)
        assert isinstance(answer, Admitted), answer
        return answer

    def changes(
        self, who: Admitted, action: int, *clients: str, channel: str = "room", core: int = 0, link: int = 1, serial: int | None = None,
        data: object = None, publish_id: str = "", fresh: bool = True, settle: bool = True, items: list[PresenceItem] | None = None,
    ) -> int:  # fmt: skip
        """One PRESENCE of a connection. The request's number."""
        one = self.cores[core]
        req = one.req()
        items = [PresenceItem(action=action, client_id=client, data=data) for client in clients] if items is None else items
        frame = Append(
            req, who.session, channel, publish_id or f"c:{who.session}:{req if serial is None else serial}", fresh, [], presence=items
        )
        one.edge_sends(frame, link)
        if settle:
            self.settle()
        return req

    def enters(self, who: Admitted, *clients: str, **more: Any) -> int:
        return self.changes(who, ENTER, *clients, **more)

    def drops(self, who: Admitted, *, core: int = 0, link: int = 1, closed: bool = False, settle: bool = True) -> None:
        self.cores[core].edge_sends(Depart(who.session, closed, who.incarnation), link)
        if settle:
            self.settle()

    def loses_edge(self, link: int) -> None:
        for core in self.cores:
            core.happens(EdgeLost(link, "reset"))
        self.settle()

    # --- what there is --------------------------------------------------------------------------------------------------------------

    def members(self, core: int = 0, channel: str = "room", app: str = "shop") -> set[tuple[str, str]]:
        partition, key = place(channel, app)
        view = self.cores[core].node._attendance.views[partition]
        found = view.channels.get(key)
        return set() if found is None else {(member.holder.connection, member.client_id) for member in found.after(0)}

    def everywhere(self, channel: str = "room") -> set[tuple[str, str]]:
        """What all cores agree upon."""
        views = [self.members(number, channel) for number in range(len(self.cores))]
        assert all(view == views[0] for view in views), views
        return views[0]

    def kinds(self, channel: str = "room") -> list[Kind]:
        """Records of a channel, and of its whole partition, in the log; when the channel was opened and closed is left out."""
        partition, key = place(channel)
        kinds = [Kind(record.kind) for record in self.log[partition] if record.key in (key, b"")]
        return [kind for kind in kinds if kind is not Kind.LIFECYCLE]

    def bodies(self, channel: str = "room") -> list[RecordBody]:
        partition, key = place(channel)
        return [decode(record.value) for record in self.log[partition] if record.key in (key, b"")]

    def page(self, who: Admitted, *, channel: str = "room", core: int = 0, link: int = 1, **more: Any) -> Any:
        """A page of members, or the refusal."""
        one = self.cores[core]
        req = one.req()
        one.edge_sends(Fetch(req, who.session, calls.MEMBERS, calls.encode(calls.Members(channel=channel, **{"limit": 100} | more))), link)
        one.answer_ends()
        one.turns()
        answer = one.answer(req)
        return calls.decode_members(answer.body) if isinstance(answer, Page) else answer

    def history(self, who: Admitted, *, channel: str = "room", core: int = 0, **more: Any) -> list[tuple[int, str, Any]]:
        """(action, clientId, data), the newest first."""
        one = self.cores[core]
        req = one.req()
        call = calls.History(channel=channel, limit=more.pop("limit", 100), presence=True, **more)
        one.edge_sends(Fetch(req, who.session, calls.HISTORY, calls.encode(call)))
        one.answer_ends()
        one.turns()
        past = calls.decode_past(one.answer(req).body)
        assert past is not None
        found = []
        for item in past.items:
            for each in reversed(decode(item.body).presence[item.first : item.last + 1]):
                found.append((each.action, each.client_id, each.data))
        return found

    def opens(self, who: Admitted, *, channel: str = "room", core: int = 0, link: int = 1, after: str | None = None) -> tuple[int, Opened]:
        one = self.cores[core]
        req = one.req()
        one.sent(link)
        one.edge_sends(Open(req, "shop", channel, who.session, after), link)
        one.answer_ends()
        one.turns()
        (opened,) = [frame for frame in one.sent(link) if isinstance(frame, Opened)]
        return req, opened

    def shown(self, core: int = 0, link: int = 1) -> list[tuple[int, list[tuple[int, str, Any]]]]:
        """(offset, items) of the PRESENCE records that an edge was sent; nothing of another kind but MESSAGE may be among them."""
        found = []
        for frame in self.cores[core].sent(link):
            if isinstance(frame, Record):
                assert frame.kind in (Kind.MESSAGE, Kind.PRESENCE), frame
                found.append((frame.offset, [(each.action, each.client_id, each.data) for each in decode(frame.body).presence]))
        return found
