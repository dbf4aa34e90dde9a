"""A rule comes, changes, rests, comes back and goes while two cores run and messages are published: each message that was its own is in its
topic once, in the order of its channel, whichever core the rule was told to, and although one of them is killed meanwhile."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.e2e.test_control import Api, until
from tests.support.product import Product
from tests.support.ruled import CHANNELS, Ruled, Stream

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]

WITHIN_S = 2.0


def test_a_rule_through_one_core_runs_on_the_partitions_of_both_and_each_message_is_written_once(
    relay: Product,
) -> None:
    api = Api(relay)
    app = str(api.made("/accounts/tidegate/apps", {"name": f"live {time.time_ns()}"})["id"])
    key = api.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["key"]
    topics = [Ruled(relay, f"live-{time.time_ns()}-{n}") for n in range(2)]
    admin = AdminClient({"bootstrap.servers": relay.kafka})
    for made in admin.create_topics([NewTopic(each.topic, 2) for each in topics]).values():
        made.result(10)

    def owned(core: int) -> set[int]:
        _, status = api.ask("GET", "/status", core=core)
        return {each["partition"] for each in status["partitions"] if each["owned"]}

    def rule_as(core: int) -> Any:
        return api.ask("GET", f"/apps/{app}/rules/{rule}", core=core)[1]

    def change(core: int, **fields: Any) -> None:
        status, answer = api.ask("PATCH", f"/apps/{app}/rules/{rule}", {"ruleType": "kafka"} | fields, core=core)
        assert status == 200, answer

    def in_force() -> bool:
        return all(rule_as(core)["running"] for core in (0, 1))

    stream = Stream(relay, app, key)
    try:
        until(lambda: stream.asked > 3 * CHANNELS and owned(0) and owned(1), 30.0)
        used = {place[0] for places in stream.log().values() for place in places}
        of_second = used & owned(1)
        assert of_second

        # Told to the first core, it runs on what the second one owns.
        body = {"ruleType": "kafka", "requestMode": "single", "source": {"channelFilter": "^out:", "type": "channel.message"}}
        asked = time.monotonic()
        rule = api.made(f"/apps/{app}/rules", body | {"target": {"routingKey": f"{topics[0].topic}:#{{channelName}}"}}, core=0)["id"]
        took = until(in_force, WITHIN_S)
        until(lambda: topics[0].partitions() & of_second, WITHIN_S + 1.0)
        print(f"in force on both cores after {took:.3f} s, the other core's records seen after {time.monotonic() - asked:.3f} s")
        until(lambda: topics[0].partitions() == used, 10.0)

        # Disabled through the other one, it says where it stopped.
        change(1, status="disabled")
        print(f"disabled on both after {until(in_force, WITHIN_S):.3f} s")
        stops: dict[int, int] = {}
        for core in (0, 1):
            live = rule_as(core)["live"]
            assert live["state"] == "stopped"
            stops |= {int(number): offset for number, offset in live["positions"].items()}
        assert set(stops) >= used
        time.sleep(1.0)
        first = topics[0].written()
        log = stream.log()
        for channel, places in first.items():
            meant = [place for place in log[channel] if places[0] <= place < (places[0][0], stops[places[0][0]])]
            assert places == meant, "from where it began to where it says that it stopped"

        # Enabled again it goes on with what comes now; then it is changed at the moment at which an owner is killed.
        change(0, status="enabled")
        print(f"enabled again on both after {until(in_force, WITHIN_S):.3f} s")
        until(lambda: sum(map(len, topics[0].written().values())) > sum(map(len, first.values())) + 50, 10.0)
        pid = relay.kill("core", 1, signal.SIGKILL)
        change(0, target={"routingKey": f"{topics[1].topic}:#{{channelName}}"})
        relay.wait_restarted("core", 1, pid, within_s=30)
        until(lambda: topics[1].partitions() == used, 40.0)

        def settled() -> bool:
            try:
                return bool(owned(0)) and bool(owned(1)) and in_force()
            except (OSError, KeyError, TypeError):
                return False

        until(settled, 40.0)

        # Deleted it is gone.
        assert api.ask("DELETE", f"/apps/{app}/rules/{rule}", core=1)[0] == 204
        time.sleep(WITHIN_S)
        last = topics[1].written()
        time.sleep(1.0)
        assert topics[1].written() == last
    finally:
        stream.stop()
    log = stream.log()
    again = {channel: places[len(first.get(channel, [])) :] for channel, places in topics[0].written().items()}
    published = 0
    for channel, places in log.items():
        both = again[channel] + last[channel]
        meant = [place for place in places if both[0] <= place <= both[-1]]
        assert both == meant, "changed from one topic to the other: nothing is missing in between, and nothing is there twice"
        assert both[0] > (first[channel][-1] if channel in first else (0, 0))
        published += len(both)
    print(f"{published} messages across the change, of {sum(map(len, log.values()))}")
