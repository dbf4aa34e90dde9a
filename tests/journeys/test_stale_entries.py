"""An SDK enters its members again at every attach after a drop, also one that has just left: then the leave counts, by the newness of ids.
Source: specification RTN19a, RTP2b2, RTP17g1, RTP17i."""

from __future__ import annotations

import pytest

from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CONNECTED, PRESENCE
from tests.journeys.test_resume import key_of
from tests.journeys.world import World

ENTER, LEAVE = 2, 3
CHANNEL = "room"


@pytest.mark.parametrize("acknowledged", [True, False], ids=["left before the drop", "leaves again with the resume"])
@pytest.mark.parametrize("seed", range(20))
def test_a_member_that_left_is_not_brought_back_by_an_older_entry(seed: int, acknowledged: bool) -> None:
    world = World(edges=2, cores=2, seed=seed)
    watcher = world.client(edge=1, clientId="watcher")
    watcher.gets(CONNECTED)
    watcher.sends(action=ATTACH, channel=CHANNEL)
    watcher.gets(ATTACHED)
    mary = world.client(edge=0, clientId="mary")
    connected = mary.gets(CONNECTED)
    mary.sends(action=ATTACH, channel=CHANNEL)
    position = mary.gets(ATTACHED)["channelSerial"]
    mary.sends(action=PRESENCE, channel=CHANNEL, msgSerial=0, presence=[{"action": ENTER}])
    leave = {"action": PRESENCE, "channel": CHANNEL, "msgSerial": 1, "presence": [{"action": LEAVE}]}
    if acknowledged:
        mary.sends(**leave)
    mary.drops()
    again = world.client(edge=seed % 2, clientId="mary", resume=key_of(connected))
    again.gets(CONNECTED, connectionId=connected["connectionId"])
    if not acknowledged:
        again.posts(**leave)
    again.posts(action=ATTACH, channel=CHANNEL, channelSerial=position)
    entry = {"action": ENTER, "id": f"{connected['connectionId']}:0:0"}
    again.posts(action=PRESENCE, channel=CHANNEL, msgSerial=2, presence=[entry])
    world.wait(3)
    answers = 0
    while again.has_more():
        frame = again.next()
        answers += frame["count"] if frame["action"] == ACK else 0
    assert answers == 2 - acknowledged
    for edge in (0, 1):
        assert world.rest("GET", f"/channels/{CHANNEL}/presence", edge=edge) == (200, [])
    told = []
    while watcher.has_more():
        told += [item["action"] for item in watcher.next().get("presence", [])]
    assert told == [ENTER, LEAVE]
    again.sends(action=PRESENCE, channel=CHANNEL, msgSerial=3, presence=[{"action": ENTER}])
    assert len(world.rest("GET", f"/channels/{CHANNEL}/presence")[1]) == 1
