"""Batches: what goes in comes out, cut where it should be; and whatever else arrives is one exception (issue: 10,000 malformed frames)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.link import frames as f
from relay.link.codec import Batch, Decoder, Fault, LinkProtocolError, encode, encode_frame, join
from relay.link.session import FromCore, FromEdge
from relay.model.errors import ErrorInfo
from relay.model.message import Message

AT_CORE = Decoder(f.ToCore, 1 << 20)
AT_EDGE = Decoder(f.ToEdge, 1 << 20)

text = st.text(max_size=20)
number = st.integers(0, 2**53)
error = st.builds(ErrorInfo, code=st.integers(0, 99_999), status_code=st.integers(100, 599), message=text, href=st.none() | text)
plain: st.SearchStrategy[object] = st.none() | st.booleans() | number | text
message = st.builds(
    Message,
    id=st.none() | text,
    name=st.none() | text,
    data=st.none() | text | st.binary(max_size=50),
    extras=st.none() | st.dictionaries(text, plain, max_size=3),
)


def struct(kind: type[f.Frame], /, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[f.Frame]:
    return st.builds(kind, **fields)


to_core = st.one_of(
    struct(
        f.Admit, req=number, credential=st.none() | text, basic=st.booleans(), realtime=st.booleans(), tls=st.booleans(), version=number
    ),
    struct(f.Present, grant=st.binary(max_size=50)),
    struct(f.Renew, req=number, session=text),
    struct(f.Open, req=number, app=text, channel=text, witness=text, after=st.none() | text),
    struct(f.Shut, ref=number),
    struct(f.Append, req=number, session=text, channel=text, id=text, fresh=st.booleans(), messages=st.lists(message, max_size=3)),
    struct(f.Fetch, req=number, session=text, what=text, body=st.binary(max_size=50)),
    struct(f.Depart, session=text, closed=st.booleans(), incarnation=st.none() | st.integers(0, 9)),
    struct(f.Up, session=text, incarnation=st.integers(0, 9)),
    struct(f.Counts, number=number, app=text, channel=text, counts=st.lists(number, max_size=7)),
    struct(f.Watch, ref=number, on=st.booleans()),
    struct(f.Barrier, req=number, ref=number),
)
to_edge = st.one_of(
    struct(f.Admitted, req=number, session=text, key=text, grant=st.binary(), app=text, client_id=st.none() | text, capability=text,
           grant_expires=number),
    struct(f.Refused, req=number, error=error),
    struct(f.Opened, req=number, serial=text, error=st.none() | error),
    struct(f.Record, ref=number, offset=number, kind=number, body=st.binary(max_size=300)),
    struct(f.Appended, req=number, serial=text),
    struct(f.Unknown, req=number),
    struct(f.Page, req=number, status=number, body=st.binary(max_size=300)),
    struct(f.Lost, ref=number, error=error),
    struct(f.Revoke, session=text, error=error),
    struct(f.Drain, why=text),
    struct(f.Superseded, session=text, incarnation=st.integers(0, 9)),
    struct(f.Reached, req=number),
    struct(f.Occupancy, ref=number, counts=st.lists(number, max_size=8)),
)  # fmt: skip


@given(st.lists(to_core, min_size=1, max_size=5), st.lists(to_edge, min_size=1, max_size=5))
@settings(deadline=None)
def test_frames_come_out_as_they_went_in(up: list[f.Frame], down: list[f.Frame]) -> None:
    assert AT_CORE.decode(encode(up)) == up
    assert AT_EDGE.decode(memoryview(encode(down))) == down
    assert encode(up) == join([encode_frame(frame) for frame in up])


@given(st.lists(st.integers(0, 400), max_size=60))
@settings(deadline=None)
def test_a_batch_is_cut_before_it_exceeds_its_limit_and_only_a_single_frame_may(sizes: list[int]) -> None:
    batch = Batch(256)
    sent = [f.Record(1, n, 0, bytes(size)) for n, size in enumerate(sizes)]
    messages = [full for frame in sent if (full := batch.add(frame)) is not None]
    if batch.count:
        messages.append(batch.take())
    received = [AT_EDGE.decode(data) for data in messages]
    assert [frame for frames in received for frame in frames] == sent
    assert all(len(data) <= 256 or len(frames) == 1 for data, frames in zip(messages, received, strict=True))
    assert all(  # and none was cut early
        len(data) + len(encode_frame(after[0])) > 256 for data, after in zip(messages, received[1:], strict=False)
    )


def test_fields_that_a_newer_peer_adds_are_ignored_and_those_an_older_one_lacks_have_defaults() -> None:
    newer = msgspec.msgpack.encode([[15, 7, "added later"]])
    assert AT_CORE.decode(newer) == [f.Shut(7)]
    older = msgspec.msgpack.encode([[10, 1, 1, 0, "site", "node", "boot"]])
    assert AT_CORE.decode(older) == [f.Hello(1, 1, f.Lane.LIVE, "site", "node", "boot")]


def fault_of(decoder: Decoder, data: bytes) -> Fault:
    with pytest.raises(LinkProtocolError) as caught:
        decoder.decode(data)
    return caught.value.fault


def test_a_message_above_the_hard_maximum_is_not_even_looked_at() -> None:
    assert fault_of(Decoder(f.ToCore, 10), b"\xc1" * 11) is Fault.OVERSIZE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode([]),
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion frames, none of which follows
        b"\x91\x99\x10\x01\xa0\xa0\xa0\xc2\x91\x81\xa4data\xdf\x0f\xff\xff\xff",  # the same inside a payload
        b"\x91\x99\x10\x01\xa0\xa0\xa0\xc2\x91\x81\xa4data" + b"\x91" * 100_000,  # nested without end
        b"\x91\x99\x10\x01\xa0\xa0\xa0\xc2\x91\x81\xa4data\xa2\xff\xff",  # text that is not UTF-8
        b"\x91\x99\x10\x01\xa0\xa0\xa0\xc2\x91\x81\xa4data\x81\x80\x01",  # a list as a key
        encode([f.Drain("for edges, not for cores")]),
        encode([f.Shut(1)]) + b"\x00",
        msgspec.msgpack.encode([[15, "one"]]),
        msgspec.msgpack.encode([[99, 1]]),
        msgspec.msgpack.encode({"t": 15, "ref": 1}),
    ],
)
def test_what_is_no_batch_for_this_side_is_malformed(data: bytes) -> None:
    assert fault_of(AT_CORE, data) is Fault.MALFORMED


def decodes_or_is_refused(data: bytes) -> None:
    for decoder in (AT_CORE, AT_EDGE):
        refusal = None
        try:
            decoder.decode(data)
        except LinkProtocolError as error:
            refusal = error
        # Nothing of what was received may show in a traceback.
        assert refusal is None or (refusal.fault is Fault.MALFORMED and refusal.__cause__ is None)
        assert refusal is None or refusal.__suppress_context__ or refusal.__context__ is None


@given(st.binary(max_size=200))
@settings(max_examples=4_000, deadline=None)
def test_fuzz_arbitrary_bytes(data: bytes) -> None:
    decodes_or_is_refused(data)


@given(st.one_of(to_core, to_edge), st.data())
@settings(max_examples=4_000, deadline=None)
def test_fuzz_batches_with_bytes_flipped_cut_or_inserted(frame: f.Frame, data: st.DataObject) -> None:
    broken = bytearray(encode([frame]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken) - 1)) if broken else 0
        match data.draw(st.integers(0, 2)):
            case 0 if broken:
                broken[at] ^= 1 << data.draw(st.integers(0, 7))
            case 1:
                del broken[at:]
            case _:
                broken[at:at] = data.draw(st.binary(max_size=8))
    decodes_or_is_refused(bytes(broken))


anything: st.SearchStrategy[object] = st.recursive(
    plain | st.binary(max_size=10) | st.floats(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3)
)


@given(st.lists(st.tuples(st.integers(0, 45), st.lists(anything, max_size=9)), max_size=3))
@settings(max_examples=2_000, deadline=None)
def test_fuzz_well_formed_msgpack_of_the_wrong_shape(rows: list[tuple[int, list[object]]]) -> None:
    decodes_or_is_refused(msgspec.msgpack.encode([[tag, *fields] for tag, fields in rows]))


def test_what_a_session_accepts_is_what_the_frames_module_declares() -> None:
    assert FromEdge | f.Credit | f.Hello == f.ToCore
    assert FromCore | f.Credit | f.Welcome == f.ToEdge
