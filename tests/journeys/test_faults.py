"""Cores that die and a broker that hangs; chance decides which step comes first. Only the fake wire can do this thousands of times."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model.channel import log_key, partition_of
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CONNECTED, DISCONNECTED, MESSAGE, NACK
from tests.journeys.world import APP, STREAM, Client, World


def drain(client: Client) -> list[dict[str, Any]]:
    frames = []
    while client.has_more():
        frames.append(client.next())
    return frames


def a_pair(world: World) -> tuple[Client, Client]:
    subscriber, publisher = world.client(edge=1), world.client(edge=0, echo="false")
    subscriber.gets(CONNECTED)
    publisher.gets(CONNECTED)
    for client in (subscriber, publisher):
        client.sends(action=ATTACH, channel="c")
        client.gets(ATTACHED)
    return subscriber, publisher


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(["publish", "publish", "publish", "kill 0", "kill 1", "start"]), max_size=40))
def test_no_acknowledged_publish_is_lost_doubled_or_moved_by_the_death_of_cores(seed: int, steps: list[str]) -> None:
    world = World(edges=2, cores=2, seed=seed)
    subscriber, publisher = a_pair(world)
    serial = 0
    for step in steps:
        alive = [n for n, core in enumerate(world.cores) if core.alive]
        match step.split():
            case ["publish"]:
                for _ in range(3):
                    publisher.posts(action=MESSAGE, channel="c", msgSerial=serial, messages=[{"data": str(serial)}])
                    serial += 1
                world.run(steps=world.random.randrange(12))  # the next fault comes somewhere in the middle
            case ["kill", number] if int(number) in alive and len(alive) == 2:
                world.kill_core(int(number))
            case ["start"] if len(alive) == 1:
                world.start_core(1 - alive[0])
            case _:
                pass
    world.wait(8)
    answers = drain(publisher)
    assert {frame["action"] for frame in answers} <= {ACK}
    assert sum(frame["count"] for frame in answers) == serial
    delivered = [message["data"] for frame in drain(subscriber) for message in frame["messages"]]
    assert delivered == [str(n) for n in range(serial)]


def test_rtn19_broker_that_hangs_disconnects_after_20_s_and_nacks_nothing_that_was_handed_over() -> None:
    world = World()
    publisher = world.client(heartbeats="false")
    publisher.gets(CONNECTED)
    world.log.frozen = True
    publisher.sends(action=MESSAGE, channel="c", msgSerial=0, messages=[{"data": "x"}])
    world.wait(19)
    publisher.gets_nothing()
    world.wait(2)
    assert publisher.gets(DISCONNECTED)["error"]["code"] == 50003
    assert publisher.closed == 1000
    assert NACK not in {frame["action"] for frame in drain(publisher)}
    world.thaw()
    again = world.client(resume="whatever!key")
    again.gets(CONNECTED)
    again.sends(action=MESSAGE, channel="c", msgSerial=0, messages=[{"data": "x"}])
    again.gets(ACK)


def test_a_channel_that_was_quiet_for_longer_than_the_index_reaches_back_survives_the_loss_of_its_core() -> None:
    world = World(cores=2)
    reader, busy = world.client(heartbeats="false"), world.client(echo="false")
    for client in (reader, busy):
        client.gets(CONNECTED)
    quiet = "c"
    noisy = next(name for name in (f"n{i}" for i in range(100)) if same_partition(name, quiet))
    reader.sends(action=ATTACH, channel=quiet)
    reader.gets(ATTACHED)
    busy.sends(action=MESSAGE, channel=quiet, msgSerial=0, messages=[{"data": "before"}])
    reader.gets(MESSAGE)
    for serial in range(1, 13):
        busy.sends(action=MESSAGE, channel=noisy, msgSerial=serial, messages=[{"data": "x"}])
        world.wait(31)
    for number in (0, 1):
        world.kill_core(number)
        world.wait(2)
        world.start_core(number)
    reader.gets_nothing()
    busy.sends(action=MESSAGE, channel=quiet, msgSerial=13, messages=[{"data": "after"}])
    assert reader.gets(MESSAGE)["messages"][0]["data"] == "after"
    reader.gets_nothing()


def same_partition(one: str, other: str) -> bool:
    return partition_of(log_key(APP, one), STREAM.partitions) == partition_of(log_key(APP, other), STREAM.partitions)
