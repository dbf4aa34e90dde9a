"""Capabilities against an oracle that knows no matching: it writes out, for each resource, every channel of a small universe that the
resource means, and works with those sets. Ably protocol docs, 7.4 and 7.5."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.capability import ALL, ATTACH, Capability, Operation
from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL
from tests.support.refusals import code_or

# --- the oracle ------------------------------------------------------------------------------------------------------------------------

LETTERS = ("a", "b", "z")  # resources are made of a, b and *: z is what only a wildcard can mean
LONGEST = 4  # resources have at most three segments, so the universe has names longer than any of them
QUALIFIERS = ("", "meta", "filter", "queue")
SPELLED = {"": "", "meta": "[meta]", "filter": "[filter=bmFtZQ==]", "queue": "[queue]"}
TAILS = [segments for length in range(1, LONGEST + 1) for segments in itertools.product(LETTERS, repeat=length)]
UNIVERSE = {(qualifier, segments) for qualifier in QUALIFIERS for segments in TAILS}


def meaning(resource: str) -> frozenset[tuple[str, tuple[str, ...]]]:
    qualifier, path = resource[1:].split("]") if resource.startswith("[") else ("", resource)
    *body, last = path.split(":")
    heads = list(itertools.product(*(LETTERS if segment == "*" else (segment,) for segment in body)))
    tails = TAILS if last == "*" else [(last,)]
    names = [head + tail for head in heads for tail in tails if len(head + tail) <= LONGEST]
    return frozenset((q, name) for q in (QUALIFIERS if qualifier == "*" else (qualifier,)) for name in names)


def text_of(target: tuple[str, tuple[str, ...]]) -> str:
    qualifier, segments = target
    return SPELLED[qualifier] + ":".join(segments)


def meant_operations(operations: list[str]) -> frozenset[str]:
    return frozenset(ALL) if operations == ["*"] else frozenset(operations)


OPERATIONS = ["publish", "subscribe", "history"]
RESOURCES = st.builds(
    lambda qualifier, segments: qualifier + ":".join(segments),
    st.sampled_from(["", "", "", "[meta]", "[filter]", "[queue]", "[*]"]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3),
)
OPERATION_LISTS = st.one_of(st.just(["*"]), st.lists(st.sampled_from(OPERATIONS), min_size=1, unique=True))
CAPABILITIES = st.dictionaries(RESOURCES, OPERATION_LISTS, max_size=4)
TARGETS = st.lists(st.sampled_from(sorted(UNIVERSE)), min_size=1, max_size=40)
ASKED = st.sampled_from([Operation.PUBLISH, Operation.SUBSCRIBE, Operation.HISTORY, Operation.STATS])


@given(CAPABILITIES, TARGETS, ASKED)
def test_permits_is_what_the_resources_mean(source, targets, operation):
    capability = Capability.parse(source)
    for target in targets:
        expected = any(target in meaning(resource) and operation in meant_operations(ops) for resource, ops in source.items())
        assert capability.permits(operation, text_of(target)) is expected, text_of(target)


@given(CAPABILITIES, CAPABILITIES, TARGETS, ASKED)
def test_intersection_is_what_two_resources_both_mean_where_one_contains_the_other(one, other, targets, operation):
    both = Capability.parse(one).intersect(Capability.parse(other))
    pairs = [
        (meaning(r) & meaning(k), meant_operations(r_ops) & meant_operations(k_ops))
        for (r, r_ops), (k, k_ops) in itertools.product(one.items(), other.items())
        if meaning(r) <= meaning(k) or meaning(k) <= meaning(r)
    ]
    for target in targets:
        expected = any(target in common and operation in operations for common, operations in pairs)
        assert both.permits(operation, text_of(target)) is expected, text_of(target)


@given(CAPABILITIES, CAPABILITIES, TARGETS)
def test_intersection_grants_nothing_that_either_denies(one, other, targets):
    a, b = Capability.parse(one), Capability.parse(other)
    both = a.intersect(b)
    for target in map(text_of, targets):
        assert both.operations_on(target) <= a.operations_on(target) & b.operations_on(target)


@given(CAPABILITIES, CAPABILITIES)
def test_intersection_is_idempotent_and_commutes(one, other):
    a, b = Capability.parse(one), Capability.parse(other)
    assert a.intersect(a) == a
    assert a.intersect(b) == b.intersect(a)
    assert a.intersect(b).intersect(b) == a.intersect(b)
    assert bool(a.intersect(b)) == (a.intersect(b).canonical() != "{}")


@given(CAPABILITIES)
def test_canonical_form_is_a_fixed_point(source):
    capability = Capability.parse(json.dumps(source, indent=1))
    canonical = capability.canonical()
    assert Capability.parse(canonical) == capability
    assert Capability.parse(canonical).canonical() == canonical
    decoded = json.loads(canonical)
    assert list(decoded) == sorted(decoded)
    assert all(operations == sorted(operations) for operations in decoded.values())
    assert decoded == {resource: sorted(operations) for resource, operations in source.items()}


# --- 7.4: canonical form and intersection ----------------------------------------------------------------------------------------------


def test_canonical_form():
    capability = Capability.parse('{ "b": ["subscribe", "publish", "publish"], "ä": ["*"], "a:*": ["*"] }')
    assert capability.canonical() == '{"a:*":["*"],"b":["publish","subscribe"],"ä":["*"]}'


KEY_2 = {"channel0": ["publish"], "channel1": ["publish"], "channel2": ["publish", "subscribe"], "channel6": ["*"]}


@pytest.mark.parametrize(
    ("key", "requested", "result"),
    [
        (KEY_2, {"channel2": ["presence", "subscribe"]}, {"channel2": ["subscribe"]}),
        (KEY_2, {"channel2": ["presence", "subscribe"], "channelx": ["publish"]}, {"channel2": ["subscribe"]}),
        (KEY_2, {"channel2": ["*"]}, {"channel2": ["publish", "subscribe"]}),
        (KEY_2, {"channel6": ["publish", "subscribe"]}, {"channel6": ["publish", "subscribe"]}),
        (KEY_2, {"*": ["publish"]}, {"channel0": ["publish"], "channel1": ["publish"], "channel2": ["publish"], "channel6": ["publish"]}),
        ({"*": ["subscribe"]}, {"cansubscribe:*": ["subscribe"]}, {"cansubscribe:*": ["subscribe"]}),
        ({"a:*": ["subscribe"], "*": ["publish"]}, {"a:b": ["*"]}, {"a:b": ["publish", "subscribe"]}),
        ({"[*]*": ["*"]}, {"[meta]log": ["subscribe"], "x": ["*"]}, {"[meta]log": ["subscribe"], "x": ["*"]}),
        (KEY_2, {"channelx": ["publish"]}, {}),
        ({"a:*": ["*"]}, {"*:b": ["*"]}, {}),
        ({"*": ["*"]}, {"[meta]*": ["*"], "[queue]q": ["*"]}, {}),
    ],
)
def test_intersection_examples(key, requested, result):
    both = Capability.parse(requested).intersect(Capability.parse(key))
    assert json.loads(both.canonical()) == result
    assert bool(both) == bool(result)


# --- 7.5: matching ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "covered", "not_covered"),
    [
        ("*", ["a", "a:b", "a:b:c", "foo*"], ["[meta]a", "[queue]a", "[filter=eA==]a"]),
        ("[meta]*", ["[meta]log", "[meta]stats:minute"], ["log", "[queue]log"]),
        ("[queue]*", ["[queue]q", "[queue]q:r"], ["q", "[meta]q"]),
        ("[filter]*", ["[filter=eA==]a", "[filter=eA==?rewind=1]a:b"], ["a", "[meta]a"]),
        ("[filter]a", ["[filter=eA==]a"], ["a", "[filter=eA==]a:b"]),
        ("[*]*", ["a", "a:b", "[meta]a", "[queue]a", "[filter=eA==]a:b"], []),
        ("[*]foo:*", ["foo:bar", "[meta]foo:bar:baz", "[queue]foo:x"], ["foo", "[meta]foo", "bar:foo"]),
        ("foo", ["foo", "[?rewind=1]foo"], ["foo:bar", "Foo", "fo", "[meta]foo", "[x]foo", "[]foo", "[foo"]),
        ("foo:*", ["foo:bar", "foo:bar:baz", "foo:*", "[?rewind=1]foo:bar"], ["foo", "food:bar", "foobar"]),
        ("foo:*:baz", ["foo:x:baz", "foo::baz"], ["foo:baz", "foo:x:y:baz", "foo:x:baz:y"]),
        ("foo*", ["foo*"], ["foo", "foobar", "foo:bar"]),
        ("*:*", ["a:b", "a:b:c"], ["a"]),
        ("[meta]log", ["[meta]log", "[meta?rewind=1]log", "[?rewind=1][meta]log"], ["log"]),
    ],
)
def test_matching(resource, covered, not_covered):
    capability = Capability.parse({resource: ["subscribe"]})
    for name in covered:
        assert capability.permits(Operation.SUBSCRIBE, name), name
        assert not capability.permits(Operation.PUBLISH, name), name
    for name in not_covered:
        assert not capability.permits(Operation.SUBSCRIBE, name), name


@pytest.mark.parametrize("resource", ["a", "*", "[filter]a", "[filter]*", "[*]a"])
def test_a_channel_may_be_followed_by_its_own_right_or_that_to_its_derived_channels(resource):
    assert Capability.parse({resource: ["subscribe"]}).permits_following("a")
    for other in ({resource: ["publish", "presence", "history"]}, {"[meta]a": ["*"], "b": ["*"], "[filter]b": ["*"]}):
        assert not Capability.parse(other).permits_following("a")
    assert not Capability.parse({"[filter]*": ["*"]}).permits_following("[meta]log")


def test_matching_resources_add_up():
    capability = Capability.parse({"a:*": ["subscribe"], "a:b": ["publish"], "[*]*": ["stats"]})
    assert capability.operations_on("a:b") == {Operation.SUBSCRIBE, Operation.PUBLISH, Operation.STATS}
    assert capability.operations_on("[meta]a") == {Operation.STATS}


def test_all_operations():
    assert Capability.parse({"a": ["*"]}).operations_on("a") == ALL == set(Operation)


def test_attaching_needs_any_of_several():
    assert Capability.parse({"a": ["presence"]}).permits_any("a", ATTACH)
    assert not Capability.parse({"a": ["history", "stats"]}).permits_any("a", ATTACH)
    assert not Capability.parse({"a": ["presence"]}).permits_any("b", ATTACH)


# --- what is refused -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        *("", "x", "[]", "null", "1", '"*"', "{", '{"a":["*"]', b"\xff", None, 1, []),
        *(
            {"a": []},
            {"a": None},
            {"a": "*"},
            {"a": ["*", "publish"]},
            {"a": ["publish_"]},
            {"a": [1]},
            {"a": [None]},
            {"a": [["publish"]]},
        ),
        *({"": ["*"]}, {"[": ["*"]}, {"[]a": ["*"]}, {"[x]a": ["*"]}, {"[meta]": ["*"]}, {"[?rewind=1]a": ["*"]}, {"[*][meta]a": ["*"]}),
        *({1: ["*"]}, {"\ud800": ["*"]}, "[" * 100_000, '{"a":' * 100_000),
        {str(number): ["*"] for number in range(PROTOCOL.max_capability_resources + 1)},
    ],
)
def test_what_is_no_capability_is_refused(source):
    with pytest.raises(RelayError) as refused:
        Capability.parse(source)
    assert refused.value.code == 40000


def test_nothing_is_a_capability_that_permits_nothing():
    assert not Capability.parse("{}")
    assert not Capability.parse("{}").permits(Operation.SUBSCRIBE, "a")


JSONLIKE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=())), st.binary()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=6), RESOURCES), inner, max_size=4)),
    max_leaves=12,
)


@given(st.one_of(JSONLIKE, JSONLIKE.map(lambda value: json.dumps(value, default=repr)), st.text(st.characters(exclude_categories=()))))
def test_anything_is_a_capability_or_40000(source):
    capability = code_or(lambda: Capability.parse(source))
    assert capability == 40000 or Capability.parse(capability.canonical()) == capability


@given(CAPABILITIES, st.text(st.characters(exclude_categories=())))
def test_asking_never_raises(source, name):
    Capability.parse(source).permits(Operation.PUBLISH, name)


def test_what_is_remembered_is_bounded():
    capability = Capability.parse({"a:*": ["publish"]})
    for number in range(PROTOCOL.channels_remembered_per_capability * 3):
        assert capability.permits(Operation.PUBLISH, f"a:{number}")
        assert len(capability._remembered) <= PROTOCOL.channels_remembered_per_capability


def test_connections_with_one_capability_share_it():
    text = '{"a":["publish"]}'
    assert Capability.parse(text) is Capability.parse(text)


# --- namespaces that are closed ----------------------------------------------------------------------------------------------------------


@given(CAPABILITIES, TARGETS, st.lists(st.sampled_from(["a", "b", "a:b", "b:a"]), unique=True, max_size=3))
def test_a_bar_takes_the_channel_of_that_name_and_those_below_it_and_nothing_else(source, targets, closed):
    capability = Capability.parse(source)
    barred = capability.barring(tuple((name, 40161) for name in closed))
    assert barred.barring(()) == capability
    for qualifier, segments in targets:
        name = text_of((qualifier, segments))
        below = any(segments[: len(one.split(":"))] == tuple(one.split(":")) for one in closed)
        assert barred.operations_on(name) == (frozenset() if below else capability.operations_on(name))
        assert barred.refusal(name).code == (40161 if below else 40160)
        if capability.operations_on(name):
            assert capability.reaches(":".join(segments)), "or a change of the namespace would not send away who can use it"


def test_bars_stay_with_what_is_left_of_a_capability_and_are_shared():
    bars = (("chat", 40161),)
    barred = Capability.parse('{"*":["*"]}').barring(bars)
    assert barred is Capability.parse('{"*":["*"]}').barring(bars)
    assert not barred.intersect(Capability.parse('{"chat:*":["publish"]}')).permits(Operation.PUBLISH, "chat:1")
    assert barred != Capability.parse('{"*":["*"]}')
    assert barred.permits(Operation.PUBLISH, "chats")
