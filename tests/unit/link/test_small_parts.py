"""Redial waits, requests in flight, bodies of calls."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.link import calls
from relay.link.redial import Backoff
from relay.link.requests import Requests, TooManyRequests


def test_the_first_redial_goes_at_once_and_later_ones_wait_one_to_five_seconds() -> None:
    backoff = Backoff(1.0, 5.0)
    assert backoff.next(0.9) == 0.0
    assert [backoff.next(chance) for chance in (0.0, 0.5, 0.999)] == [1.0, 3.0, pytest.approx(4.996)]


def test_only_a_link_that_held_earns_another_redial_at_once_and_a_slow_one_never() -> None:
    backoff = Backoff(1.0, 5.0)
    backoff.next(0.0)
    backoff.lost(held=0.3)
    assert backoff.next(0.5) == 3.0
    backoff.lost(held=60.0)
    assert backoff.next(0.5) == 0.0
    backoff.lost(held=60.0, slow=True)
    assert backoff.next(0.5) == 3.0


def test_requests_are_numbered_once_answered_once_and_bounded() -> None:
    requests: Requests[str] = Requests(2)
    first, second = requests.add("a"), requests.add("b")
    with pytest.raises(TooManyRequests):
        requests.add("c")
    assert requests.get(first) == "a"
    assert requests.take(first) == "a"
    assert requests.take(first) is None
    third = requests.add("c")
    assert len({first, second, third}) == 3
    assert requests.drain() == [(second, "b"), (third, "c")]
    assert len(requests) == 0


def test_calls_carry_what_the_client_sent_letter_by_letter() -> None:
    body = b'{ "keyName":"a.b","ttl" : 3600000.0 }'
    sent = calls.RequestToken("a.b", msgspec.Raw(body), None, "192.0.2.1")
    got = calls.decode(calls.REQUEST_TOKEN, calls.encode(sent))
    assert isinstance(got, calls.RequestToken)
    assert bytes(got.body) == body
    assert got.key_name == "a.b"


@given(st.sampled_from([*calls.CALLS, "nonsense"]), st.binary(max_size=60) | st.sampled_from([b'{"app":1}', b"[]", b'{"app":"\xff"}']))
def test_fuzz_a_call_is_decoded_or_refused(what: str, body: bytes) -> None:
    with contextlib.suppress(calls.UnknownCall):
        assert type(calls.decode(what, body)) is calls.CALLS[what]
