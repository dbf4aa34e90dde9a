"""What rules would make of an event that has not happened. Pure, and by the same code that writes. For people who set up rules.

{"channel": "chat:lobby", "messages": [{"name": "greet", "data": "hello", "clientId": "bob"}]}
{"channel": "chat:lobby", "presence": {"action": "enter", "clientId": "bob", "data": "online"}}
{"channel": "chat:lobby", "lifecycle": "channel.opened"}
{"channel": "chat:lobby", "occupancy": {"connections": 3}}
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from core.lifecycle import LifecycleBody, event_id
from core.occupancy_log import OccupancyBody
from core.presence import Change
from core.rules.batch import Batched, Batcher, Output
from core.rules.envelope import CONTENT_TYPE, PRESENCE_ACTIONS, Event
from core.rules.rule import Drop, Rule, lifecycle_event, message_events, occupancy_event, presence_events
from core.state import MemberState
from relay.model.channel import parse_channel
from relay.model.errors import RelayError
from relay.model.identity import WILDCARD
from relay.model.message import RecordBody
from relay.model.occupancy import METRICS
from relay.model.presence import presence_from_wire
from relay.model.publish import messages_from_wire, settle
from relay.model.serials import Serial

CONNECTION = "connection"
"""The connection of a sample that names none."""
_PLACE = Serial("preview0", 0, 0)
_ANY_SIZE = 1 << 30
"""How large a message may be is no matter of rules."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_ACTIONS = {name: number for number, name in PRESENCE_ACTIONS.items()}


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """An event as it might happen: exactly one of `messages`, `presence`, `lifecycle` and `occupancy`. Messages and presence items are
    as a client sends them in JSON, one or a list; the action of a presence item may be a word."""

    channel: str
    app: str = ""
    """Empty: whichever; for the caller to settle."""
    messages: list[Any] | dict[str, Any] | None = None
    presence: list[Any] | dict[str, Any] | None = None
    lifecycle: Literal["channel.opened", "channel.closed"] | None = None
    occupancy: dict[str, Count] | None = None
    """Counts by their names; those left out are zero."""
    connection_id: str = CONNECTION
    timestamp: Count | None = None
    """Milliseconds; left out: now."""


class Preview(NamedTuple):
    """What one rule makes of the sample: a record, or why there is none. A sample of several messages gives several."""

    rule: str
    output: Output | None
    reason: str = ""

    def shape(self) -> dict[str, Any]:
        """As JSON. `valueBase64` in place of `value` for what is not UTF-8; of msgpack also what it says (`decoded`)."""
        output = self.output
        if output is None:
            return {"rule": self.rule, "result": "none", "reason": self.reason}
        made: dict[str, Any] = {"rule": self.rule, "result": "record", "topic": output.topic}
        made["key"] = None if output.key is None else output.key.decode("utf-8", "replace")
        made["headers"] = [{"name": name, "value": text_of(value) or ""} for name, value in output.headers]
        text = text_of(output.value)
        if ("content-type", CONTENT_TYPE["msgpack"]) in output.headers:
            made["decoded"] = msgspec.to_builtins(msgspec.msgpack.decode(output.value))
            text = None
        return made | ({"valueBase64": base64.b64encode(output.value).decode()} if text is None else {"value": text})


def text_of(value: bytes | str | None) -> str | None:
    """None for what is not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else value or ""
    except UnicodeDecodeError:
        return None


def read_sample(data: bytes | str) -> Sample:
    """Raises ValueError, with what is wrong."""
    try:
        return msgspec.json.decode(data, type=Sample)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise ValueError(str(wrong).replace("`", "")) from None


def convert_sample(given: object) -> Sample:
    """The same of JSON that has been read. Raises ValueError."""
    try:
        return msgspec.convert(given, Sample)
    except (msgspec.MsgspecError, RecursionError) as wrong:
        raise ValueError(str(wrong).replace("`", "")) from None


def preview(rules: Iterable[Rule], sample: Sample, *, site: str, now_ms: int) -> list[Preview]:
    """What each of `rules` (of one app) makes of it. Raises ValueError for a sample that no client could send."""
    try:
        events = _events(sample, now_ms if sample.timestamp is None else sample.timestamp)
    except RelayError as wrong:
        raise ValueError(wrong.info.message) from None
    return [each for rule in rules for each in _of(rule, events, site)]


def _events(sample: Sample, at: int) -> list[Event]:
    channel = parse_channel(sample.channel).name
    given = [name for name in ("messages", "presence", "lifecycle", "occupancy") if getattr(sample, name) is not None]
    if len(given) != 1:
        raise ValueError("give one of messages, presence, lifecycle and occupancy")
    if sample.messages is not None:
        messages = messages_from_wire(sample.messages, json=True, rest=True)
        settle(messages, client_id=WILDCARD, connection_id=None, max_bytes=_ANY_SIZE, privileged=True, mutable=True)
        body = RecordBody(id=f"{sample.connection_id}:0", timestamp=at, connection_id=sample.connection_id, messages=messages)
        return message_events(channel, body, _PLACE, at)
    if sample.presence is not None:
        several = sample.presence if isinstance(sample.presence, list) else [sample.presence]
        items = presence_from_wire([_with_number(item) for item in several], json=True)
        changes = [
            Change(
                item.action,
                sample.connection_id,
                item.client_id,
                MemberState(
                    id=item.id or f"{sample.connection_id}:0:{index}",
                    timestamp=at,
                    offset=0,
                    data=item.data,
                    encoding=item.encoding,
                    extras=item.extras,
                ),
            )
            for index, item in enumerate(items)
        ]
        return presence_events(channel, changes, _PLACE, at)
    if sample.occupancy is not None:
        if unknown := sample.occupancy.keys() - set(METRICS):
            raise ValueError(f"occupancy has no {min(unknown)}: {', '.join(METRICS)}")
        counts = tuple(sample.occupancy.get(metric, 0) for metric in METRICS)
        return [occupancy_event(channel, OccupancyBody(id=f"{channel}:1", timestamp=at, n=1, counts=counts), _PLACE, at)]
    name = sample.lifecycle or ""
    return [lifecycle_event(channel, LifecycleBody(id=event_id(name, channel, 1), timestamp=at, name=name, n=1), _PLACE, at)]


def _with_number(item: object) -> object:
    """A presence item whose action may be a word."""
    return item | {"action": _ACTIONS.get(item["action"], 0)} if isinstance(item, dict) and isinstance(item.get("action"), str) else item


def _of(rule: Rule, events: list[Event], site: str) -> list[Preview]:
    source = rule.config.source.type
    if not rule.enabled:
        return [Preview(rule.id, None, "the rule is disabled")]
    if events[0].source != source:
        return [Preview(rule.id, None, f"the rule is for {source}")]
    if not rule.matches(rule.app, events[0].channel):
        return [Preview(rule.id, None, "the channel filter does not match")]
    found: list[Preview] = []
    batcher = Batcher()
    for event in events:
        made = None if rule.skips(event) else rule.make(event, site)
        if made is None:
            found.append(Preview(rule.id, None, "left out as the publisher asks (extras)"))
        elif isinstance(made, Drop):
            found.append(Preview(rule.id, None, f"dropped: {made.reason.replace('_', ' ')}"))
        elif isinstance(made, Batched):
            full = batcher.add(made)
            found += [Preview(rule.id, full)] if full is not None else []
        else:
            found.append(Preview(rule.id, made))
    return found + [Preview(rule.id, output) for output in batcher.flush()]
