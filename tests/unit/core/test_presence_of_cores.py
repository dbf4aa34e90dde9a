"""Presence as cores keep it: members that enter, leave, drop, come back and are taken away. Specification RTP; Ably protocol docs, 5."""

from __future__ import annotations

import json
from itertools import permutations

import msgspec
import pytest

from core.effects import Produce, WriteSession
from core.events import EdgeLost, Looked, Overfull, Owned, Reported, SessionRead, StateRead
from relay.link import calls
from relay.link.calls import CreateApp, DeleteApp, encode
from relay.link.frames import Admit, Admitted, Append, Appended, Depart, Fetch, Page, Present, Refused, Unknown
from relay.model.message import Kind, Message, PresenceItem
from tests.unit.core.cluster import ALL, ENTER, LEAVE, UPDATE, Cluster, decode, place
from tests.unit.core.dialogue import EDGE, OTHER_EDGE, SECRET, Dialogue, token


def resume(cluster: Cluster, who: Admitted, *, core: int = 0, link: int = 2) -> Admitted:
    answer = cluster.connect(core, link, resume=who.key)
    assert answer.session == who.session
    return answer


# --- entering ---------------------------------------------------------------------------------------------------------------------------


def test_rtp8_enter_update_leave_are_acknowledged_and_seen_by_every_core():
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.opens(one)
    req = cluster.enters(one, "ann", data="a", serial=0)
    assert isinstance(cluster[0].answer(req), Appended)
    assert cluster.everywhere() == {(one.session, "ann")}
    cluster.changes(one, UPDATE, "ann", data="b", serial=1)
    cluster.changes(one, LEAVE, "ann", serial=2)
    assert cluster.everywhere() == set()
    assert [items for _, items in cluster.shown()] == [[(ENTER, "ann", "a")], [(UPDATE, "ann", "b")], [(LEAVE, "ann", "b")]]
    assert cluster.history(one, core=0) == [(LEAVE, "ann", "b"), (UPDATE, "ann", "b"), (ENTER, "ann", "a")]
    (body, *_) = cluster.bodies()
    assert (body.id, body.incarnation, body.edge) == (f"{one.session}:0", 0, "boot-1")


def test_rtp10d_what_changes_nothing_is_acknowledged_and_shown_to_nobody():
    cluster = Cluster()
    one = cluster.connect()
    _, opened = cluster.opens(one)
    assert isinstance(cluster[0].answer(cluster.changes(one, LEAVE, "ann")), Appended)
    cluster.enters(one, "ann", serial=5)
    again = [PresenceItem(action=ENTER, client_id="ann", id=f"{one.session}:5:0")]
    assert isinstance(cluster[0].answer(cluster.enters(one, items=again, serial=6)), Appended)
    assert [items for _, items in cluster.shown()] == [[(ENTER, "ann", None)]]
    assert len(cluster.history(one)) == 1
    cluster.opens(one, after=opened.serial)


def test_of_a_record_that_counts_in_part_that_part_is_shown():
    cluster = Cluster()
    one = cluster.connect()
    cluster.opens(one)
    cluster.enters(one, "bob", data="x", serial=0)
    cluster.changes(one, LEAVE, "ann", "bob", "cid", serial=1)
    ((_, _), (_, items)) = cluster.shown()
    assert items == [(LEAVE, "bob", "x")]
    leave = decode(cluster[0].index.read_before("aaaabbbb", *place("room"), 100, 10, 10_000).records[0].value)
    assert [item.id for item in leave.presence] == [f"{one.session}:1:1"], "its place in what the client sent"


def test_a_repeated_append_is_one_and_has_the_serial_of_the_first():
    cluster = Cluster()
    one = cluster.connect()
    first = cluster[0].answer(cluster.enters(one, "ann", serial=0))
    cluster.changes(one, LEAVE, "ann", serial=1)
    again = cluster[0].answer(cluster.enters(one, "ann", serial=0, fresh=False))
    assert again.serial == first.serial
    assert cluster.members() == set()


def test_5_2_capability_clientid_and_channel_are_checked_again():
    cluster = Cluster()
    one = cluster[0]

    chat = cluster.connect(credential=token("shop.chat", **{"x-ably-clientId": "*"}))
    assert one.answer(cluster.changes(chat, ENTER, "ann", channel="chat:x")).error.code == 40160
    bob = cluster.connect(credential=token(**{"x-ably-clientId": "bob"}))
    assert one.answer(cluster.enters(bob, "eve")).error.code == 40012
    anonymous = cluster.connect(credential=token())
    assert one.answer(cluster.enters(anonymous, "")).error.code == 91000
    key = cluster.connect()
    assert one.answer(cluster.enters(key, "")).error.code == 40012
    assert one.answer(cluster.enters(key, "ann", channel="[meta]log")).error.code == 40010
    assert one.answer(cluster.enters(key, "ann", publish_id="i:mine")).error.code == 40031
    assert one.answer(cluster.enters(key, "ann", publish_id="c:somebodyel:1")).error.code == 40031
    rest = cluster.connect(realtime=False)
    assert one.answer(cluster.enters(rest, "ann", publish_id="s:x")).error.code == 40160
    both = Append(one.req(), key.session, "room", "s:xy", True, [Message(data="x")], presence=[PresenceItem(LEAVE, "ann")])
    one.edge_sends(both)
    assert one.answer(both.req).error.code == 40000
    assert cluster.log == [[], [], [], []]


def test_5_4_leaves_of_a_detach_need_no_capability_and_have_ids_of_their_own():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann", "bob")
    assert cluster[0].answer(cluster.changes(one, ENTER, "cid", publish_id="s:random:0")).error.code == 40031, "leaves only"
    assert cluster[0].answer(cluster.changes(one, LEAVE, "ann", publish_id=f"s:{one.session}:0")).error.code == 40031
    narrow = cluster[0].admitted(token("shop.chat", **{"x-ably-clientId": "*"}), session=one.session)
    assert narrow.session == one.session
    cluster.changes(one, LEAVE, "ann", "bob", publish_id="s:random:0")
    assert cluster.members() == set()
    assert not cluster.bodies()[-1].id.startswith(one.session)


def test_a_leave_is_never_older_than_its_member_by_whosever_clock():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster[1].now_ms += 60_000
    cluster.enters(one, "ann", core=1)
    cluster.connect(0)
    cluster[0].edge_sends(Depart(one.session, False, 0))
    cluster.drops(one, core=1)
    cluster.wait(17)
    assert cluster.everywhere() == set()
    enter, *_, leave = cluster.bodies()
    assert leave.timestamp >= enter.timestamp


# --- limits -----------------------------------------------------------------------------------------------------------------------------


def test_5_5_91003_counts_members_and_what_is_on_its_way():
    cluster = Cluster(presence_members=3)
    one, two = cluster.connect(), cluster.connect()
    cluster.held = []
    cluster.enters(one, "ann")
    cluster.enters(one, "bob")
    cluster.enters(one, "ann", "bob")
    assert cluster[0].answer(cluster.enters(two, "ann", "bob")).error.code == 91003
    cluster.enters(two, "ann")
    answer = cluster[0].answer(cluster.enters(one, "cid"))
    assert (answer.error.code, answer.error.status_code) == (91003, 400)
    assert "3" in answer.error.message
    cluster.thaw()
    assert len(cluster.members()) == 3
    assert isinstance(cluster[0].answer(cluster.changes(one, UPDATE, "ann", "bob")), Appended), "members may go on"
    assert cluster[0].answer(cluster.enters(one, "cid")).error.code == 91003
    assert isinstance(cluster[0].answer(cluster.enters(one, "cid", channel="other")), Appended)
    cluster.changes(one, LEAVE, "bob")
    assert isinstance(cluster[0].answer(cluster.enters(one, "cid")), Appended)


def test_what_was_not_taken_or_is_unknown_counts_no_longer():
    cluster = Cluster(presence_members=1)
    one, two = cluster.connect(), cluster.connect()
    cluster.held = []
    req = cluster.enters(one, "ann")
    ((core, produce),) = cluster.held
    core.happens(Overfull(produce.ticket, "full"))
    assert isinstance(core.answer(req), Unknown)
    one = cluster.connect()
    cluster.held = []
    req = cluster.enters(one, "ann")
    ((core, produce),) = cluster.held
    core.happens(Reported(produce.ticket, produce.partition, None))
    assert isinstance(core.answer(req), Unknown)
    cluster.held = None
    assert isinstance(cluster[0].answer(cluster.enters(two, "bob")), Appended)
    cluster.wait(1)
    assert not core.node._attendance._arrivals


def test_a_member_that_got_in_is_not_refused_when_it_comes_again():
    cluster = Cluster(presence_members=1)
    one = cluster.connect()
    first = cluster[0].answer(cluster.enters(one, "ann", serial=0))
    two = cluster.connect()
    cluster.changes(one, LEAVE, "ann", serial=1)
    cluster.enters(two, "bob")
    assert cluster[0].answer(cluster.enters(one, "ann", serial=0, fresh=False)).serial == first.serial
    assert cluster[0].answer(cluster.enters(one, "ann", serial=2, fresh=False)).error.code == 91003


def test_5_5_91006_the_set_is_bounded_in_bytes():
    cluster = Cluster(presence_bytes=1_000)
    one = cluster.connect()
    cluster.enters(one, "ann", data="x" * 800)
    assert cluster[0].answer(cluster.enters(one, "bob", data="x" * 100)).error.code == 91006
    assert isinstance(cluster[0].answer(cluster.changes(one, UPDATE, "ann", data="y" * 900)), Appended), "in place of what it had"


# --- a connection ends ------------------------------------------------------------------------------------------------------------------


def test_5_4_a_close_makes_all_members_leave_at_once_on_every_channel():
    cluster = Cluster()
    one, two = cluster.connect(), cluster.connect()
    for channel in ("room", "hall"):
        cluster.enters(one, "ann", "bob", channel=channel)
    cluster.enters(two, "ann")
    cluster.drops(one, closed=True)
    assert cluster.members() == {(two.session, "ann")}
    assert cluster.members(channel="hall") == set()
    leave = cluster.bodies("hall")[-1]
    assert leave.cause is None
    assert not leave.id.startswith(one.session)


def test_5_4_a_drop_starts_the_grace_and_its_end_the_leave():
    cluster = Cluster()
    one = cluster.connect()
    cluster.opens(cluster.connect())
    cluster.enters(one, "ann", data="x")
    cluster.drops(one)
    cluster.wait(14.5)
    assert cluster.members() == {(one.session, "ann")}
    cluster.wait(2)
    assert cluster.members() == set()
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE, Kind.PRESENCE]
    *_, (_, items) = cluster.shown()
    assert items == [(LEAVE, "ann", "x")]
    leave = cluster.bodies()[-1]
    assert leave.cause == next(record.offset for record in cluster.log[place("room")[0]] if record.kind == Kind.GONE)
    assert not leave.id.startswith(one.session)
    assert leave.timestamp == pytest.approx(cluster[0].now_ms, abs=2_500)
    cluster.wait(30)
    assert len(cluster.kinds()) == 3


@pytest.mark.parametrize(("asked", "granted"), [(5_000, 5), (0, 0), (-4, 0), (10**9, 120)])
def test_5_4_remain_present_for_is_the_clients_within_bounds(asked, granted):
    cluster = Cluster(2)
    one = cluster.connect(1, remain_present_ms=asked)
    cluster.enters(one, "ann", core=1)
    cluster.drops(one, core=1)
    if granted:
        cluster.wait(granted - 1)
        assert cluster.everywhere() == {(one.session, "ann")}
    cluster.wait(2.5)
    assert cluster.everywhere() == set()


def test_a_core_that_did_not_admit_it_leaves_the_word_to_the_one_that_did():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    for core in (0, 1):
        cluster.drops(one, core=core)
    cluster.wait(3)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE]


def test_an_edge_speaks_for_its_own_connections_only():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.drops(one, link=2, closed=True)
    cluster.wait(20)
    assert cluster.members() == {(one.session, "ann")}


def test_what_was_entered_just_before_the_end_ends_with_it():
    cluster = Cluster()
    one, two = cluster.connect(), cluster.connect()
    cluster.held = []
    cluster.enters(one, "ann", settle=False)
    cluster.drops(one, settle=False)
    cluster.enters(two, "bob", settle=False)
    cluster.drops(two, closed=True, settle=False)
    cluster.settle()
    cluster.thaw()
    assert cluster.members() == {(one.session, "ann")}
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE, Kind.PRESENCE, Kind.PRESENCE]
    cluster.wait(17)
    assert cluster.members() == set()


# --- resume and expiry ------------------------------------------------------------------------------------------------------------------


def test_6_on_resume_members_stay_and_nothing_is_shown():
    cluster = Cluster(2)
    one, watcher = cluster.connect(), cluster.connect()
    cluster.opens(watcher)
    cluster.enters(one, "ann")
    cluster.enters(one, "ann", channel="hall")
    cluster.drops(one)
    cluster.wait(10)
    again = resume(cluster, one, core=1)
    assert cluster.kinds() == cluster.kinds("hall") == [Kind.PRESENCE, Kind.GONE, Kind.BACK]
    cluster.wait(60)
    assert cluster.everywhere() == {(one.session, "ann")}
    assert [items for _, items in cluster.shown()] == [[(ENTER, "ann", None)]]
    cluster.drops(again, core=1, link=2)
    cluster.wait(17)
    assert cluster.everywhere() == set()


def test_the_answer_to_a_resume_waits_until_its_members_are_safe():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.enters(one, "ann", channel="hall")
    cluster.drops(one)
    cluster.held = []
    frame = Admit(900, f"shop.all:{SECRET}", True, True, True, 6, resume=one.key)
    cluster[0].edge_sends(frame, 2)
    cluster.settle()
    assert [produce.kind for _, produce in cluster.held] == [Kind.BACK, Kind.BACK]
    assert not any(isinstance(sent, Admitted) for sent in cluster[0].sent(2))
    (core, first), (_, second) = cluster.held
    core.happens(Reported(first.ticket, first.partition, 5))
    assert core.sent(2) == []
    core.happens(Reported(second.ticket, second.partition, 5))
    (admitted,) = core.sent(2)
    assert (admitted.req, admitted.session, admitted.incarnation) == (900, one.session, 1)


@pytest.mark.parametrize("fate", ["unknown", "overfull", "late"])
def test_a_resume_whose_members_may_not_be_safe_is_refused_and_can_be_tried_again(fate):
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.drops(one)
    cluster.held = []
    frame = Admit(900, f"shop.all:{SECRET}", True, True, True, 6, resume=one.key)
    cluster[0].edge_sends(frame, 2)
    cluster.settle()
    ((core, back),) = cluster.held
    match fate:
        case "unknown":
            core.happens(Reported(back.ticket, back.partition, None))
        case "overfull":
            core.happens(Overfull(back.ticket, "full"))
        case "late":
            cluster.wait(6)
    answer = core.answer(900)
    assert isinstance(answer, Refused)
    assert answer.error.code == 50003
    cluster.thaw() if fate == "late" else setattr(cluster, "held", None)
    again = resume(cluster, one)
    assert again.incarnation == 2
    cluster.wait(40)
    assert cluster.members() == {(one.session, "ann")}


def test_without_members_a_resume_waits_for_nothing():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.changes(one, LEAVE, "ann")
    cluster.drops(one)
    cluster.held = []
    resume(cluster, one)
    assert cluster.held == []


@pytest.mark.parametrize("order", list(permutations(["back", "leave", "enter"])), ids="-".join)
def test_resume_and_expiry_in_every_order_end_alike_on_every_core(order):
    """The grace is over while the connection comes back and its client enters again under the id that it had (RTP17g)."""
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann", serial=0, data="x")
    cluster.drops(one)
    cluster.wait(14)
    cluster.held = []
    frame = Admit(900, f"shop.all:{SECRET}", True, True, True, 6, resume=one.key)
    for core in cluster.cores:
        core.tick(2)
    cluster.settle()
    leave = next(entry for entry in cluster.held if entry[1].kind == Kind.PRESENCE)
    cluster.held.clear()
    cluster[1].edge_sends(frame, 2)
    cluster.settle()
    back = next(entry for entry in cluster.held if entry[1].kind == Kind.BACK)
    cluster.held.clear()
    item = PresenceItem(action=ENTER, client_id="ann", id=f"{one.session}:0:0", data="x")
    # As the same client sends it once it is resumed; here its incarnation is known from BACK alone
    cluster[1].happens(Reported(back[1].ticket, back[1].partition, 99))
    cluster.enters(one, items=[item], core=1, link=2, serial=7, fresh=False)
    enter = next(entry for entry in cluster.held if entry[1].kind == Kind.PRESENCE and entry[1] is not leave[1])
    cluster.held = None
    made = {"back": back, "leave": leave, "enter": enter}
    for name in order:
        core, produce = made[name]
        cluster.write(core, produce, reported=name != "back")
    cluster.wait(1)
    left = order[0] == "leave"
    assert len(cluster.history(cluster.connect())) == (3 if left else 1), "left and entered again under the same id, or nothing happened"
    assert cluster.everywhere() == {(one.session, "ann")}
    cluster.wait(40)
    assert cluster.everywhere() == {(one.session, "ann")}


@pytest.mark.parametrize("restart", [False, True])
def test_rtn19_what_was_sent_again_after_the_grace_enters_again_though_it_is_in_the_log(restart):
    """The ACK never reached the client, which is away for longer than its members stay. It believes to be entering still."""
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann", "bob", "cid", serial=0)
    cluster.changes(one, LEAVE, "bob", serial=1)
    cluster.changes(one, UPDATE, "cid", serial=2, data="z")
    cluster.drops(one)
    cluster.wait(20)
    assert cluster.everywhere() == set()
    if restart:
        cluster.start(1, owns=frozenset(), checkpoint=100)
        cluster[1].edge_up(2, OTHER_EDGE, "boot-2")
    resume(cluster, one, core=1)
    watcher = cluster.connect(1) if not restart else cluster.connect(1, 2)
    cluster.opens(watcher, core=1, link=2 if restart else 1)
    again = {"core": 1, "link": 2, "fresh": False}
    for _ in range(2):  # and that ACK is lost, too
        assert isinstance(cluster[1].answer(cluster.enters(one, "ann", "bob", "cid", serial=0, **again)), Appended)
        assert isinstance(cluster[1].answer(cluster.changes(one, LEAVE, "bob", serial=1, **again)), Appended)
        assert isinstance(cluster[1].answer(cluster.changes(one, UPDATE, "cid", serial=2, data="z", **again)), Appended)
    assert cluster.everywhere() == {(one.session, "ann"), (one.session, "cid")}
    found = cluster.page(watcher, core=1, link=2 if restart else 1).members
    assert [(member.id, member.data) for member in found] == [(f"{one.session}:0:0", None), (f"{one.session}:2:0", "z")]
    assert [items for _, items in cluster.shown(1, 2 if restart else 1)] == [
        [(ENTER, "ann", None), (ENTER, "cid", None)],
        [(UPDATE, "cid", "z")],
    ]


def test_two_cores_that_both_believe_to_own_a_partition_end_a_grace_once():
    cluster = Cluster(2)
    cluster[1].happens(Owned(ALL))
    one, watcher = cluster.connect(), cluster.connect()
    cluster.opens(watcher)
    cluster.enters(one, "ann")
    cluster.drops(one)
    cluster.wait(14)
    cluster.held = []
    cluster.wait(2)
    assert [produce.kind for _, produce in cluster.held] == [Kind.PRESENCE, Kind.PRESENCE], "not again while nothing is reported"
    cluster.thaw()
    assert cluster.everywhere() == set()
    assert [items for _, items in cluster.shown()] == [[(ENTER, "ann", None)], [(LEAVE, "ann", None)]]


def test_an_owner_that_slept_ends_nobody_who_is_back():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    cluster.drops(one, core=1)
    cluster.deaf.add(cluster[0])
    again = resume(cluster, one, core=1)
    cluster.drops(again, core=1, link=2)
    resume(cluster, again, core=1)
    cluster.wait(30)
    cluster.hears(cluster[0])
    cluster.wait(30)
    assert cluster.everywhere() == {(one.session, "ann")}


def test_nobody_else_than_the_owner_ends_graces():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    cluster[0].happens(Owned(frozenset()))
    cluster.drops(one, core=1)
    cluster.wait(30)
    assert cluster.everywhere() == {(one.session, "ann")}
    cluster[1].happens(Owned(ALL))
    cluster.wait(2)
    assert cluster.everywhere() == set()


@pytest.mark.parametrize("fate", ["unknown", "overfull"])
def test_a_leave_of_unknown_fate_is_appended_again(fate):
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.drops(one)
    cluster.wait(14)
    cluster.held = []
    cluster.wait(2)
    ((core, leave),) = cluster.held
    cluster.held = None
    core.happens(Reported(leave.ticket, leave.partition, None) if fate == "unknown" else Overfull(leave.ticket, "full"))
    cluster.wait(2)
    assert cluster.members() == set()


def test_many_members_leave_in_as_many_records_as_it_takes():
    cluster = Cluster(presence_members=5_000)
    one = cluster.connect()
    for number in range(3):
        cluster.enters(one, *(f"c{number}-{n}" for n in range(700)), data="x" * 60)
    cluster.drops(one)
    cluster.wait(18)
    assert cluster.members() == set()
    leaves = [body for body in cluster.bodies() if body.cause is not None]
    assert sum(len(body.presence) for body in leaves) == 2_100
    assert all(len(body.presence) <= 1_000 for body in leaves)
    assert len({body.id for body in leaves}) == len(leaves) >= 3


def test_thousands_of_graces_leave_room_for_publishers():
    cluster = Cluster(presence_members=5_000)
    everyone = [cluster[0].admitted() for _ in range(1_200)]
    cluster.settle()
    for one in everyone:
        cluster.enters(one, "ann", settle=False)
    cluster.settle()
    for one in everyone:
        cluster.drops(one, settle=False)
    cluster.settle()
    cluster.wait(14)
    cluster.held = []
    cluster.wait(3)
    assert len(cluster.held) == 500
    cluster.thaw()
    assert cluster.members() == set()


# --- lost edges -------------------------------------------------------------------------------------------------------------------------


def test_members_of_a_lost_edge_leave_within_31_seconds_and_nobody_elses():
    cluster = Cluster(2)
    one, two = cluster.connect(), cluster.connect(link=2)
    cluster.enters(one, "ann")
    cluster.enters(two, "bob", link=2)
    cluster.wait(5)
    cluster.loses_edge(1)
    cluster.wait(6)
    assert Kind.EDGE_GONE not in cluster.kinds()
    cluster.wait(15)
    assert cluster.everywhere() == {(one.session, "ann"), (two.session, "bob")}
    cluster.wait(7)
    assert cluster.everywhere() == {(two.session, "bob")}, "after 28 s"
    assert cluster.kinds().count(Kind.EDGE_GONE) == 1


def test_a_client_of_a_lost_edge_may_have_asked_for_less():
    cluster = Cluster()
    one = cluster.connect(remain_present_ms=1_000)
    cluster.enters(one, "ann")
    cluster.loses_edge(1)
    cluster.wait(14)
    assert cluster.members() == set()


def test_a_client_of_a_lost_edge_that_resumes_elsewhere_keeps_its_members():
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.loses_edge(1)
    cluster.wait(20)
    resume(cluster, one, core=1)
    cluster.wait(60)
    assert cluster.everywhere() == {(one.session, "ann")}


@pytest.mark.parametrize("away", [12, 24])
def test_an_edge_that_had_only_lost_its_links_is_back_with_its_members(away):
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.loses_edge(1)
    cluster.wait(away)
    assert Kind.EDGE_GONE in cluster.kinds()
    for core in cluster.cores:
        core.edge_up(1, EDGE, "boot-1")
    cluster.settle()
    assert cluster.kinds()[-1] == Kind.EDGE_BACK
    cluster.wait(60)
    assert cluster.everywhere() == {(one.session, "ann")}
    assert cluster.kinds().count(Kind.EDGE_BACK) == 1


def test_an_edge_that_is_linked_to_another_core_only_is_no_lost_edge():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    cluster[0].happens(EdgeLost(1, "reset"))
    cluster.wait(60)
    assert cluster.kinds() == [Kind.PRESENCE]


def test_an_edge_that_is_back_at_another_core_is_back():
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.loses_edge(1)
    cluster.wait(15)
    assert cluster.kinds()[-1] == Kind.EDGE_GONE
    cluster[1].edge_up(1, EDGE, "boot-1")
    cluster.wait(40)
    assert cluster.everywhere() == {(one.session, "ann")}


def test_an_edge_can_be_lost_again_and_its_members_go_then():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    for _ in range(3):
        cluster.loses_edge(1)
        cluster.wait(13)
        assert cluster.kinds()[-1] == Kind.EDGE_GONE
        cluster[0].edge_up(1, EDGE, "boot-1")
        cluster.settle()
        assert cluster.kinds()[-1] == Kind.EDGE_BACK
    cluster.loses_edge(1)
    cluster.wait(31)
    assert cluster.members() == set()


def test_a_connection_that_comes_to_an_edge_before_that_is_known_to_be_back_stays():
    cluster = Cluster(2)
    one, two = cluster.connect(), cluster.connect(link=2)
    cluster.enters(one, "ann")
    cluster.enters(two, "bob", link=2)
    cluster.loses_edge(2)
    cluster.wait(13)
    cluster.drops(one)
    cluster[1].edge_up(2, OTHER_EDGE, "boot-2")
    resume(cluster, one, core=1)
    cluster.wait(60)
    assert cluster.everywhere() == {(one.session, "ann"), (two.session, "bob")}


# --- what the owner puts right ----------------------------------------------------------------------------------------------------------


def test_a_drop_that_died_with_its_core_is_made_up_for():
    cluster = Cluster(3)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    cluster[2].edge_sends(Depart(one.session, False, 0))
    cluster.kill(1)
    cluster.wait(3.5)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE]
    cluster.wait(16)
    assert cluster.everywhere() == set()


def test_a_close_that_died_with_its_core_is_made_up_for():
    cluster = Cluster(3)
    one = cluster.connect(1)
    cluster.enters(one, "ann", core=1)
    cluster[2].edge_sends(Depart(one.session, True, 0))
    cluster.kill(1)
    cluster.wait(3)
    assert cluster.everywhere() == set()


def test_an_enter_that_was_under_way_through_another_core_when_its_connection_dropped():
    cluster = Cluster(2)
    one = cluster.connect()
    cluster[1].edge_sends(Present(one.grant))
    cluster.held = []
    cluster.enters(one, "ann", core=1)
    cluster.drops(one)
    assert [produce.kind for _, produce in cluster.held] == [Kind.PRESENCE]
    cluster.wait(5)
    cluster.thaw()
    assert cluster.everywhere() == {(one.session, "ann")}
    cluster.wait(3)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE]
    cluster.wait(16)
    assert cluster.everywhere() == set()


def test_a_member_of_a_connection_that_nobody_knows_goes_after_a_while():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster[0].happens(SessionRead(f"connection:{one.session}", None))
    cluster[0].take(WriteSession)  # what would heal it, were the connection's own core not as forgetful
    cluster.wait(8)
    assert cluster.kinds() == [Kind.PRESENCE]
    cluster.wait(5)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE]


def test_a_connection_whose_first_record_is_still_to_be_read_is_left_alone():
    cluster = Cluster(2)
    one = cluster[1].admitted()
    unread = cluster[1].take(WriteSession)
    cluster.sessions.clear()
    for core in cluster.cores:
        core.node._connections._table.pop(one.session, None)
    cluster.enters(one, "ann", core=1)
    cluster.wait(8)
    cluster[0].happens(SessionRead(f"connection:{one.session}", one_record(cluster, one)))
    cluster.wait(30)
    assert cluster.kinds() == [Kind.PRESENCE], unread


def one_record(cluster: Cluster, who: Admitted) -> bytes:
    record = {"core": "core-2", "edge": EDGE, "boot": "boot-1", "app": "shop", "keyName": "shop.all", "clientId": "*"}
    return json.dumps(record).encode()


def test_a_return_that_was_not_written_is_made_up_for():
    cluster = Cluster(2)
    one = cluster.connect()
    cluster.enters(one, "ann")
    cluster.drops(one)
    cluster.deaf.add(cluster[1])
    # A core that has read neither that there is a member nor that its connection is gone takes the connection over.
    late = Cluster.start(cluster, 2, owns=frozenset())
    del late
    core = cluster[2]
    core.node._attendance.views[place("room")[0]].__init__()
    core.edge_up(2, OTHER_EDGE, "boot-2")
    cluster.settle()
    resume(cluster, one, core=2)
    assert Kind.BACK not in cluster.kinds()
    cluster.wait(4)
    assert cluster.kinds() == [Kind.PRESENCE, Kind.GONE, Kind.BACK]
    cluster.wait(40)
    assert cluster.members() == {(one.session, "ann")}


# --- from the topics --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, 0, 1, 2, 3, 4, 5, 6, 100])
def test_a_core_that_starts_again_knows_what_it_knew(checkpoint):
    cluster = Cluster(2)
    one, two, three = cluster.connect(), cluster.connect(link=2), cluster.connect()
    cluster.enters(one, "ann", "bob", data="x")
    cluster.enters(two, "ann", link=2)
    cluster.changes(one, LEAVE, "bob")
    cluster.enters(three, "cid")
    cluster.drops(one)
    cluster.drops(three, closed=True)
    before = cluster.members(1)
    assert before == {(one.session, "ann"), (two.session, "ann")}
    cluster.start(1, owns=ALL, checkpoint=checkpoint)
    cluster[0].happens(Owned(frozenset()))
    cluster[1].edge_up(2, OTHER_EDGE, "boot-2")
    assert cluster.everywhere() == before
    page = cluster.page(cluster.connect(1, 2), core=1, link=2)
    assert [(member.connection_id, member.client_id, member.data) for member in page.members] == [
        (one.session, "ann", "x"),
        (two.session, "ann", None),
    ]
    cluster.wait(14)
    assert cluster.everywhere() == before, "graces begin anew"
    cluster.wait(3)
    assert cluster.everywhere() == {(two.session, "ann")}


@pytest.mark.parametrize("checkpoint", [0, 2, 3, 100])
def test_history_of_a_restarted_core_is_what_it_was(checkpoint):
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann", data="a", serial=0)
    cluster.changes(one, UPDATE, "ann", data="b", serial=1)
    cluster.drops(one)
    cluster.wait(17)
    before = cluster.history(cluster.connect())
    assert [action for action, *_ in before] == [LEAVE, UPDATE, ENTER]
    cluster.start(0, checkpoint=checkpoint)
    cluster[0].edge_up()
    assert cluster.history(cluster.connect()) == before


def test_a_core_is_not_ready_before_the_state_of_all_partitions_has_come():
    core = Dialogue(ready=False, restored=False)
    for partition in range(4):
        core.happens(Looked(partition, 0, 0))
    core.tick()
    for partition in range(4):
        assert not core.node.ready
        core.happens(StateRead(partition, None, {}))
    assert core.node.ready


# --- reads ------------------------------------------------------------------------------------------------------------------------------


def test_opened_says_how_many_there_are_at_its_serial():
    cluster = Cluster()
    one = cluster.connect()
    _, opened = cluster.opens(one)
    assert opened.members == 0
    cluster.enters(one, "ann", "bob")
    assert cluster.opens(one)[1].members == 2
    assert cluster.opens(one, after=opened.serial)[1].members == 2


def test_members_in_pages_that_are_bounded_in_number_and_in_bytes():
    cluster = Cluster(members_page=7, read_bytes=3_000)
    one = cluster.connect()
    cluster.enters(one, *(f"c{n:02}" for n in range(20)))
    cluster.enters(one, *(f"big{n}" for n in range(4)), data="x" * 2_000)
    found, sizes, after = [], [], 0
    while True:
        page = cluster.page(one, limit=10, after=after)
        found += [member.client_id for member in page.members]
        sizes.append(len(page.members))
        if page.after is None:
            break
        after = page.after
    assert found == [*(f"c{n:02}" for n in range(20)), *(f"big{n}" for n in range(4))]
    assert sizes == [7, 7, 7, 1, 1, 1] or max(sizes) <= 7
    (member, *_) = cluster.page(one, limit=1).members
    assert (member.connection_id, member.id[: len(one.session)], member.offset) == (one.session, one.session, 0)
    assert cluster.page(one, limit=0).error.code == 40003


def test_8_2_members_filtered_by_client_and_by_connection():
    cluster = Cluster()
    one, two = cluster.connect(), cluster.connect()
    cluster.enters(two, "ann")
    cluster.enters(one, "ann", "bob")

    def found(**more: object) -> list[tuple[str, str]]:
        return [(member.connection_id, member.client_id) for member in cluster.page(one, **more).members]

    assert found(client_id="ann") == [(two.session, "ann"), (one.session, "ann")]
    assert found(connection_id=one.session) == [(one.session, "ann"), (one.session, "bob")]
    assert found(connection_id=one.session, client_id="bob", fresh=True) == [(one.session, "bob")]
    assert found(connection_id="nobody") == found(client_id="eve") == []
    first = cluster.page(one, connection_id=one.session, limit=1)
    assert [member.client_id for member in first.members] == ["ann"]
    assert found(connection_id=one.session, after=first.after) == [(one.session, "bob")]


def test_a_fresh_read_waits_for_what_was_acknowledged_elsewhere_and_another_does_not():
    cluster = Cluster(2)
    one = cluster.connect(1)
    cluster.deaf.add(cluster[0])
    cluster.enters(one, "ann", core=1)
    reader = cluster.connect()
    assert cluster.page(reader).members == []
    req = cluster[0].req()
    cluster[0].edge_sends(Fetch(req, reader.session, calls.MEMBERS, encode(calls.Members(channel="room", limit=10, fresh=True))))
    cluster[0].answer_ends()
    cluster[0].turns()
    cluster.hears(cluster[0])
    cluster[0].turns()
    page = calls.decode_members(cluster[0].answer(req).body)
    assert [member.client_id for member in page.members] == ["ann"]


@pytest.mark.parametrize(
    ("capability", "allowed"), [('["subscribe"]', True), ('["presence"]', True), ('["publish"]', False), ('["history"]', False)]
)
def test_8_2_who_may_see_the_members(capability, allowed):
    cluster = Cluster()
    cluster.enters(cluster.connect(), "ann")
    reader = cluster.connect(credential=token(**{"x-ably-capability": f'{{"room":{capability}}}'}))
    page = cluster.page(reader)
    assert len(page.members) == 1 if allowed else page.error.code == 40160
    assert cluster.page(cluster.connect(), channel="[meta]room").error.code == 40010


def test_presence_and_messages_have_histories_of_their_own():
    cluster = Cluster()
    one = cluster.connect()
    cluster.enters(one, "ann", "bob", "cid", serial=0)
    cluster[0].append(one.session, "room", f"c:{one.session}:1", Message(data="m"))
    cluster.settle()
    assert [client for _, client, _ in cluster.history(one)] == ["cid", "bob", "ann"]
    assert [client for _, client, _ in cluster.history(one, limit=2)] == ["cid", "bob"]
    req = cluster[0].req()
    cluster[0].edge_sends(Fetch(req, one.session, calls.HISTORY, encode(calls.History(channel="room", limit=10))))
    cluster[0].answer_ends()
    cluster[0].turns()
    (item,) = calls.decode_past(cluster[0].answer(req).body).items
    assert decode(item.body).messages[0].data == "m"


# --- sandbox ----------------------------------------------------------------------------------------------------------------------------

FIXTURES = [
    {"clientId": "client_string", "data": "text"},
    {"clientId": "client_json", "data": '{"a":1}', "encoding": "json"},
    {"clientId": "client_encoded", "data": "HO4cYSP8", "encoding": "json/utf-8/cipher+aes-128-cbc/base64"},
]


def raw(body: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(body).encode())


def ask(core: Dialogue, what: str, call: calls.Call) -> int:
    req = core.req()
    core.edge_sends(Fetch(req, "", what, encode(call)))
    core.turns()
    return req


def test_14_1_fixtures_are_members_before_the_app_is_announced_and_stay():
    core = Dialogue(sandbox=True)
    core.edge_up()
    channels = [{"name": "persisted:fixtures", "presence": FIXTURES}, {"name": "empty"}, {"name": "other", "presence": FIXTURES[:1]}]
    body = {"keys": [{}], "channels": channels, "limits": {"presence": {"maxMembers": 4}}}
    req = ask(core, calls.CREATE_APP, CreateApp(raw(body)))
    core.config_writes()
    assert core.sent() == []
    core.kafka_round()
    page = core.answer(req)
    assert (page.status, json.loads(page.body)["channels"]) == (201, channels)
    key = json.loads(page.body)["keys"][0]["keyStr"]
    session = core.admitted(key).session

    def members(channel: str) -> list[calls.MemberItem]:
        core.edge_sends(Fetch(core.req(), session, calls.MEMBERS, encode(calls.Members(channel=channel, limit=100))))
        found = calls.decode_members(core.answer(core.last_req).body)
        assert found is not None
        return found.members

    for _ in range(200):
        core.tick(1)
        core.sessions_round()
        core.kafka_round()
    found = members("persisted:fixtures")
    assert [(member.client_id, member.data, member.encoding) for member in found] == [
        ("client_string", "text", None),
        ("client_json", '{"a":1}', "json"),
        ("client_encoded", b"\x1c\xee\x1ca#\xfc", "json/utf-8/cipher+aes-128-cbc"),
    ]
    assert len({member.connection_id for member in found + members("other")}) == 1
    assert all(member.id.startswith(member.connection_id) and member.timestamp for member in found)
    connection = core.admitted(key).session
    refused = core.req()
    items = [PresenceItem(ENTER, "x"), PresenceItem(ENTER, "y")]
    core.edge_sends(Append(refused, connection, "persisted:fixtures", f"c:{connection}:0", True, [], presence=items))
    assert core.answer(refused).error.code == 91003

    app = json.loads(page.body)["appId"]
    req = ask(core, calls.DELETE_APP, DeleteApp(app, key))
    core.config_writes()
    core.kafka_round()
    assert isinstance(core.answer(req), Page)
    assert core.node._attendance.channels == 0


@pytest.mark.parametrize(
    "body",
    [
        {"channels": [{"name": "x", "presence": [{"data": "nobody"}]}]},
        {"channels": [{"name": "", "presence": FIXTURES}]},
        {"channels": ["x"]},
        {"channels": [{"name": "x", "presence": 1}]},
        {"limits": {"presence": {"maxMembers": 0}}},
        {"limits": {"presence": {"maxMembers": "many"}}},
    ],
)
def test_14_1_an_app_with_malformed_fixtures_is_not_made(body):
    core = Dialogue(sandbox=True)
    core.edge_up()
    req = ask(core, calls.CREATE_APP, CreateApp(raw(body)))
    assert core.answer(req).error.status_code == 400
    assert core.take(Produce) == []


def test_14_1_an_app_whose_fixtures_are_not_written_is_refused():
    core = Dialogue(sandbox=True)
    core.edge_up()
    req = ask(core, calls.CREATE_APP, CreateApp(raw({"channels": [{"name": "x", "presence": FIXTURES}]})))
    core.config_writes()
    (produce,) = core.take(Produce)
    core.happens(Reported(produce.ticket, produce.partition, None))
    assert core.answer(req).error.code == 50003
