"""What several cores say of themselves (`GET /v1/status`), put together: for `tidegate status` and for the console. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def together(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`answers`: what each core says, and its `url`; `error` in place of the rest for one that does not answer."""
    return {"cores": list(answers), "edges": edges(answers), "partitions": partitions(answers)}


def edges(cores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Edge processes by boot id: the youngest word of their lease, and which cores they are linked to."""
    found: dict[str, dict[str, Any]] = {}
    for core in cores:
        for lease in core.get("leases", ()):
            known = found.setdefault(lease["boot"], {**lease, "cores": [], "sessions": 0})
            known["ageMs"] = min(known["ageMs"], lease["ageMs"])
            known["alive"] = known["alive"] or lease["alive"]
        for link in core.get("links", ()):
            known = found.setdefault(
                link["boot"], {"edge": link["edge"], "boot": link["boot"], "ageMs": None, "alive": True, "cores": [], "sessions": 0}
            )
            known["cores"].append(core["node"])
            known["sessions"] = max(known["sessions"], link["sessions"])
    return sorted(found.values(), key=lambda each: (each["edge"], not each["alive"], each["boot"]))


def partitions(cores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who owns each, and how far the slowest core is behind its end."""
    found: dict[int, dict[str, Any]] = {}
    for core in cores:
        for each in core.get("partitions", ()):
            known = found.setdefault(each["partition"], {"partition": each["partition"], "owners": [], "end": None, "lag": None})
            if each["owned"]:
                known["owners"].append(core["node"])
            if each["end"] is not None:
                known["end"] = max(known["end"] or 0, each["end"])
                known["lag"] = max(known["lag"] or 0, each["lag"])
    return [found[number] for number in sorted(found)]
