"""What an edge may pile up in a core, however hard it tries."""

from __future__ import annotations

from core.registry import App
from relay.link.frames import Admit, Depart, Fetch, Lost, Opened, Present, Refused, Renew, Revoke, Shut
from relay.model.limits import CoreLimits
from tests.unit.core.dialogue import Dialogue, key


def test_a_grant_that_is_shown_or_renewed_again_and_again_is_remembered_once() -> None:
    core = Dialogue()
    core.edge_up()
    admitted = core.admitted(realtime=False)
    for _ in range(5_000):
        core.edge_sends(Present(admitted.grant))
        core.edge_sends(Renew(core.req(), admitted.session))
        core.edge_sends(Depart(admitted.session, closed=False))
        core.edge_sends(Present(admitted.grant))
        core.now_ms += 1
    assert len(core.node._roster._ends) < 2_000
    core.tick(400)
    assert core.node.status()["sessions"] == 0


def test_channels_that_are_shut_do_not_hold_up_the_search_for_witnesses() -> None:
    """A thousand clients leave within a second, and the edge shuts their channels; one channel still wants another witness."""
    core = Dialogue()
    core.edge_up()
    for number in range(1_000):
        session = core.admitted().session
        req = core.open(f"c{number}", session)
        core.edge_sends(Depart(session, closed=True))
        core.edge_sends(Shut(req))
    session = core.admitted().session
    req = core.open("last", session)
    assert isinstance(core.answer(req), Opened)
    core.edge_sends(Depart(session, closed=True))
    core.sent()
    core.tick(10.5)
    core.tick(1)
    assert [type(frame) for frame in core.sent()] == [Lost]
    assert len(core.node._unwitnessed) == 0


def test_an_oversized_credential_or_call_does_not_wait_for_its_turn() -> None:
    core = Dialogue(limits=CoreLimits(max_credential_bytes=100, max_call_bytes=100))
    core.edge_up()
    core.edge_sends(Admit(1, "x" * 101, False, True, True, 6))
    core.edge_sends(Fetch(2, "", "createApp", b"x" * 101))
    assert [(frame.req, frame.error.code) for frame in core.sent() if isinstance(frame, Refused)] == [(1, 40101), (2, 40009)]
    assert core.node.status()["admits"] == 0


def test_a_grant_is_not_renewed_once_the_key_or_app_counts_no_more() -> None:
    for app, code in (
        (App(id="off", status="disabled", keys={"all": key("off", "all")}), 40120),
        (App(id="off", keys={"all": key("off", "all", expires=1)}), 40132),
        (App(id="off", keys={"all": key("off", "all", status=1)}), 40131),
        (App(id="off"), 40131),
    ):
        before = App(id="off", keys={"all": key("off", "all")})
        other = Dialogue(static=[before])
        other.edge_up()
        grant = other.admitted(f"off.all:{before.keys['all'].secret}")
        core = Dialogue(static=[app])
        core.edge_up()
        core.edge_sends(Present(grant.grant))
        told = [frame.error.code for frame in core.sent() if isinstance(frame, Revoke)]
        core.edge_sends(Renew(9, grant.session))
        refused = core.answer(9).error.code
        assert (told, refused) == (([], code) if not app.keys else ([code], 40101)), "revoked when shown, or else not renewed"
