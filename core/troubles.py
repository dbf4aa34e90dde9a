"""What goes wrong with rules and mappings, for those who read `[meta]log`. Pure: the difference between one look and the next.

Nothing of a payload or of a key is in it: reasons are of a fixed set, topics and ids are of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from core.events import Noticed
from relay.model.errors import ErrorInfo

RULE_PARKED = "rule.parked"
"""A rule cannot write to a topic; it waits, and catches up when it can."""
RULE_DROPPED = "rule.dropped"
"""A rule left out records that it can never write."""
MAPPING_STOPPED = "mapping.stopped"
"""A mapping waits at a record."""
_MINUTE_MS = 60_000


class Troubles:
    """Of one core. One message a minute for each rule or mapping and reason, over all cores: a topic that is missing holds up a rule on
    every partition of the log."""

    def __init__(self) -> None:
        self._parked: set[tuple[str, str, str]] = set()
        self._dropped: dict[tuple[str, str], int] = {}
        self._stopped: set[tuple[str, ...]] = set()
        self._told: dict[str, Noticed] = {}
        """Within the minute, by number."""
        self._minute = 0

    def look(
        self,
        parked: Iterable[Mapping[str, Any]],
        dropped: Mapping[tuple[str, str], int],
        mappings: Iterable[Mapping[str, Any]],
        now_ms: int,
    ) -> list[Noticed]:
        """What is new. `parked` as in the summaries of `core.parked` and `core.remote`; `dropped`: how many so far, by rule and reason;
        `mappings`: their status."""
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._told = minute, {}
        found: list[Noticed] = []
        now_parked = {(each["rule"], each["topic"], each["reason"]) for each in parked}
        for rule, topic, reason in sorted(now_parked - self._parked):
            more = {"topic": topic} if topic else {}
            found.append(_noticed(rule, "rule", RULE_PARKED, reason, minute, "A rule cannot write; it will catch up when it can", more))
        self._parked = now_parked
        for (rule, reason), count in sorted(dropped.items()):
            if count > self._dropped.get((rule, reason), 0):
                found.append(_noticed(rule, "rule", RULE_DROPPED, reason, minute, "A rule left out what it can never write", {}))
        self._dropped = dict(dropped)
        now_stopped: set[tuple[str, ...]] = set()
        for mapping in mappings:
            for each in mapping["stopped"]:
                known = (mapping["app"], mapping["id"], each["topic"], str(each["partition"]), str(each["offset"]), each["reason"])
                now_stopped.add(known)
                if known not in self._stopped:
                    where = {name: each[name] for name in ("topic", "partition", "offset")}
                    label = f"{mapping['app']}/{mapping['id']}"
                    text = "A mapping waits at a record"
                    found.append(_noticed(label, "mapping", MAPPING_STOPPED, each["reason"], minute, text, where))
        self._stopped = now_stopped
        new = {each.number: each for each in reversed(found) if each.number not in self._told}
        self._told |= new
        return [*reversed(new.values())]


def _noticed(label: str, kind: str, name: str, reason: str, minute: int, text: str, more: dict[str, Any]) -> Noticed:
    app, _, number = label.partition("/")
    error = msgspec.to_builtins(ErrorInfo.of(70000, f"{text}: {reason.replace('_', ' ')}", 500))
    return Noticed(app, f"{name}:{label}:{reason}:{minute}", name, {"error": error, f"{kind}Id": number, "reason": reason, **more})
