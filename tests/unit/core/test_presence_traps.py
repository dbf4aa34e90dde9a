"""Members that would be lost, would stay for ever, or would cost too much: found in reviews."""

from __future__ import annotations

import pytest

from core import attendance
from core.effects import LinkClose, WriteSession
from core.events import SessionRead
from relay.model.message import Kind
from tests.unit.core.cluster import LEAVE, Cluster
from tests.unit.core.dialogue import EDGE
from tests.unit.core.test_presence_of_cores import one_record


def test_no_edge_process_bears_the_name_of_those_whose_members_stay_for_ever():
    cluster = Cluster()
    cluster[0].edge_up(3, EDGE, "fixture")
    (closed,) = cluster[0].take(LinkClose)
    assert closed.link == 3
    assert 3 not in cluster[0].node._roster.links


@pytest.mark.parametrize("lost", [False, True], ids=["it lives on", "its edge is lost then"])
def test_a_connection_that_was_unknown_for_too_long_and_lives_keeps_its_members(lost):
    """Its first record could not be written for some seconds. Where it was taken for gone, the grace is not its end."""
    cluster = Cluster(2)
    one = cluster[1].admitted()
    unread = cluster[1].take(WriteSession)
    cluster.sessions.clear()
    for core in cluster.cores:
        core.node._connections._table.pop(one.session, None)
    cluster.enters(one, "ann", core=1)
    cluster.wait(14)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE], unread
    for core in cluster.cores:
        core.happens(SessionRead(f"connection:{one.session}", one_record(cluster, one)))
    cluster.wait(30)
    assert cluster.everywhere() == {(one.session, "ann")}
    if lost:
        cluster.loses_edge(1)
    else:
        cluster.drops(one, core=1)
        assert cluster.everywhere() == {(one.session, "ann")}
    cluster.wait(30)
    assert cluster.everywhere() == set()


def test_many_leaves_in_one_record_are_decoded_a_few_times(monkeypatch):
    cluster = Cluster(presence_members=1_000)
    one = cluster.connect()
    cluster.enters(one, *(f"m{n}" for n in range(500)))
    decoded = 0
    decode = attendance.decode_body

    def count(value):
        nonlocal decoded
        decoded += 1
        return decode(value)

    monkeypatch.setattr(attendance, "decode_body", count)
    cluster.changes(one, LEAVE, *(f"m{n}" for n in range(500)))
    assert cluster.members() == set()
    assert decoded <= 2
