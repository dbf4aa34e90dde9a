"""What readers of `[meta]log` are told of rules and mappings."""

from __future__ import annotations

from typing import Any

import msgspec

from core.parked import ParkedRule, summary
from core.rules import Rule, RuleConfig
from core.state import ParkedState
from core.troubles import Troubles

MINUTE = 60_000
RULE = Rule("shop", msgspec.convert({"id": "out", "target": {"routing_key": "orders"}}, RuleConfig))


def parked(topic: str = "orders", reason: str = "missing_topic") -> dict[str, Any]:
    (found,) = summary((ParkedRule(number, RULE, topic, ParkedState(5, reason=reason), 9), 12) for number in (0, 3))
    return found


def stopped(offset: int = 5) -> dict[str, Any]:
    where = {"topic": "in", "partition": 2, "offset": offset, "reason": "undecodable", "detail": "of the payload", "delayed": False}
    return {"app": "shop", "id": "m", "stopped": [where]}


def test_a_rule_that_parks_is_told_of_once_and_again_when_it_parks_again() -> None:
    troubles = Troubles()
    (first,) = troubles.look([parked()], {}, [], 5 * MINUTE)
    assert (first.app, first.name) == ("shop", "rule.parked")
    assert first.about["ruleId"] == "out"
    assert (first.about["reason"], first.about["topic"]) == ("missing_topic", "orders")
    assert first.about["error"]["code"] == 70000
    assert troubles.look([parked()], {}, [], 9 * MINUTE) == []
    assert troubles.look([], {}, [], 10 * MINUTE) == []
    (again,) = troubles.look([parked()], {}, [], 11 * MINUTE)
    assert again.number != first.number
    (other,) = troubles.look([parked(reason="unauthorized_topic")], {}, [], 11 * MINUTE)
    assert other.number != again.number


def test_another_core_gives_it_the_same_number() -> None:
    (one,) = Troubles().look([parked()], {}, [], 5 * MINUTE + 1)
    (other,) = Troubles().look([parked()], {}, [], 5 * MINUTE + 30_000)
    (topic,) = Troubles().look([parked("invoices")], {}, [], 5 * MINUTE + 30_000)
    assert one.number == other.number == topic.number


def test_topics_that_a_client_makes_up_are_one_message_a_minute() -> None:
    troubles = Troubles()
    made_up: list[dict[str, Any]] = []
    told = 0
    for second in range(120):
        made_up += [parked(f"made-up-{second}-{n}") for n in range(10)]
        told += len(troubles.look(made_up, {}, [], 7 * MINUTE + 1000 * second))
    assert told == 2


def test_records_left_out_are_told_of_while_they_grow() -> None:
    troubles = Troubles()
    (first,) = troubles.look([], {(RULE.label, "too_large"): 3}, [], MINUTE)
    assert (first.name, first.about["reason"]) == ("rule.dropped", "too_large")
    assert troubles.look([], {(RULE.label, "too_large"): 3}, [], 3 * MINUTE) == []
    (second,) = troubles.look([], {(RULE.label, "too_large"): 4}, [], 4 * MINUTE)
    assert second.number != first.number


def test_a_mapping_that_waits_at_a_record() -> None:
    troubles = Troubles()
    (first,) = troubles.look([], {}, [stopped()], MINUTE)
    assert (first.app, first.name, first.about["mappingId"]) == ("shop", "mapping.stopped", "m")
    assert [first.about[name] for name in ("topic", "partition", "offset", "reason")] == ["in", 2, 5, "undecodable"]
    assert "of the payload" not in str(first)
    assert troubles.look([], {}, [stopped()], 2 * MINUTE) == []
    assert len(troubles.look([], {}, [stopped(6)], 3 * MINUTE)) == 1
