"""Templates and channel filters of any kind: they mean what the grammar says, and cost no more than they may."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.log import LogRecord
from core.rules import ConfigError, Rule, RuleConfig, RuleSet
from core.rules import rule as rule_module
from core.rules.checks import MAX_FILTER, MAX_PROGRAM, compile_filter
from core.rules.template import Template, TemplateError, fingerprint, scalar_text
from relay.model.message import Kind, Message, RecordBody

# --- templates -----------------------------------------------------------------------------------------------------------------------

WS = st.text(" \t\r\n", max_size=2)
TEXT = st.text(max_size=12).filter(lambda text: "#{" not in text and not text.endswith("#"))
HEADER = st.text(min_size=1, max_size=8).filter(lambda text: "'" not in text)
VARIABLE = st.sampled_from(["channelName", "message.name", "message.id", "message.clientId"]) | HEADER.map(lambda name: ("header", name))
FILTER = st.one_of(
    st.just(("hash", 16)),
    st.tuples(st.just("hash"), st.integers(2, 36)),
    st.tuples(st.just("moduloHash"), st.integers(1, 2**32), st.integers(2, 36)),
)
PLACEHOLDER = st.tuples(st.lists(VARIABLE, min_size=1, max_size=1), st.none() | FILTER) | st.tuples(
    st.lists(VARIABLE, min_size=2, max_size=4), FILTER
)
VALUES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=6) | st.just([1])
MESSAGES = st.builds(
    Message,
    id=st.none() | st.text(max_size=8),
    name=st.none() | st.text(max_size=8),
    client_id=st.none() | st.text(max_size=8),
    extras=st.none() | st.builds(lambda headers: {"headers": headers}, st.dictionaries(HEADER, VALUES, max_size=4) | st.just("no headers")),
)


def spelled(draw: Any, part: Any) -> str:
    """A placeholder as somebody may write it."""
    variables, chosen = part

    def space() -> str:
        return str(draw(WS))

    names = [each if isinstance(each, str) else f"message.extras.headers['{each[1]}']" for each in variables]
    operand = names[0] if len(names) == 1 and draw(st.booleans()) else f"({','.join(space() + name + space() for name in names)})"
    if operand.startswith("(") and chosen is None:
        operand = names[0]
    suffix = ""
    if chosen is not None:
        arguments = chosen[1:]
        listed = f"({','.join(f'{space()}{number}{space()}' for number in arguments)})"
        suffix = f"{space()}|{space()}{chosen[0]}{listed}"
    return f"#{{{space()}{operand}{suffix}{space()}}}"


def meant(part: Any, channel: str, message: Message) -> str:
    """The same value, worked out another way."""
    variables, chosen = part
    headers = (message.extras or {}).get("headers")
    values = []
    for each in variables:
        if isinstance(each, tuple):
            values.append(scalar_text(headers.get(each[1])) if isinstance(headers, dict) else "")
        else:
            fields = {"channelName": channel, "message.name": message.name, "message.id": message.id, "message.clientId": message.client_id}
            values.append(fields[each] or "")
    if chosen is None:
        return values[0]
    number = fingerprint("\x1f".join(values).encode("utf-8", "surrogatepass"))
    if chosen[0] == "moduloHash":
        number %= chosen[1]
    digits, base = "", chosen[-1]
    while number or not digits:
        number, digit = divmod(number, base)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


@given(st.lists(TEXT | PLACEHOLDER, max_size=6), st.text(max_size=12), MESSAGES, st.data())
def test_every_template_of_the_grammar_means_what_it_says(parts: list[Any], channel: str, message: Message, data: st.DataObject) -> None:
    """R2.1, R2.6, R2.7, R2.8, R2.9, R2.10, R2.11, R2.12, R2.16"""
    text = "".join(part if isinstance(part, str) else spelled(data.draw, part) for part in parts)
    wanted = "".join(part if isinstance(part, str) else meant(part, channel, message) for part in parts)
    assert Template(text).render(channel, message) == wanted


@given(st.lists(PLACEHOLDER, min_size=1, max_size=3), st.text(min_size=1, max_size=2), st.data())
def test_a_template_with_a_fault_is_refused_or_means_something(parts: list[Any], junk: str, data: st.DataObject) -> None:
    """R2.15: one character more or less never gives anything but a template or a TemplateError that says where."""
    text = "".join(spelled(data.draw, part) for part in parts)
    at = data.draw(st.integers(0, len(text)))
    for broken in (text[:at] + junk + text[at:], text[:at] + text[at + 1 :]):
        try:
            said = Template(broken).render("room", Message())
        except TemplateError as wrong:
            said = str(wrong).partition(" at character ")[2]
            assert 1 <= int(said) <= len(broken) + 1
        assert isinstance(said, str)


# --- channel filters -----------------------------------------------------------------------------------------------------------------

MAX_NAME = 2_048
HOSTILE = [
    "(a+)+$",
    "(a|a)*b",
    "([a-zA-Z]+)*1",
    "(.*)(.*)(.*)(.*)[^x]$",
    "[ab]*a[ab]{900}c",
    "(?:x?){600}x{600}z",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    r"(\w+\s?)*:$",
]
TOO_COSTLY = [".{1000}", "(?:(?:a{30}){30}){3}", r"\p{L}{1,100}", ".{1000}" * 20, ".{1000}" * 140]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_hostile_filters_are_small_programs(pattern: str) -> None:
    """R1.9: without backtracking, a pass over a name takes at most the program's size in steps for each byte, and a search is two passes.
    No filter has more instructions than this, and a name has 2,048 bytes."""
    compiled: Any = compile_filter(pattern)
    assert compiled.programsize <= MAX_PROGRAM
    compiled.search("ab" * (MAX_NAME // 2))
    compiled.search("a" * MAX_NAME + "!")


@pytest.mark.parametrize("pattern", TOO_COSTLY)
def test_filters_that_would_be_large_programs_are_refused(pattern: str) -> None:
    """R1.9"""
    with pytest.raises(ConfigError) as refused:
        compile_filter(pattern)
    assert refused.value.field == "source.channel_filter"


def test_a_search_stops_nobody_else() -> None:
    """R1.9: the dearest search that there is, on the longest name, while another thread goes on. Publishing and delivery are on such a
    thread: only rules wait for a filter."""
    dearest = compile_filter("(?:x?){600}x{600}z")
    assert dearest is not None
    searching, searched = threading.Event(), threading.Event()

    def search() -> None:
        searching.set()
        for _ in range(5):
            dearest.search("x" * MAX_NAME)
        searched.set()

    thread = threading.Thread(target=search)
    thread.start()
    searching.wait()
    steps = 0
    while not searched.is_set():
        steps += 1
        time.sleep(0)
    thread.join()
    assert steps > 100  # if a search kept the interpreter to itself there would be one or two for each


ATOMS = st.sampled_from(["a", ".", r"\w", r"\pL", "[^:]", "(?i)k", "x{900}", "a|b", "^", "$", ""])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,50}", "{1000}"])),
        st.builds("{}{}".format, inner, inner),
        st.builds("({}|{})".format, inner, inner),
    ),
    max_leaves=12,
)


@given(PATTERNS | st.text(max_size=30))
def test_a_filter_is_a_small_program_or_refused(pattern: str) -> None:
    """R1.9"""
    try:
        compiled: Any = compile_filter(pattern)
    except ConfigError as refused:
        field = refused.field
    else:
        field = "source.channel_filter"
        assert compiled is None or compiled.programsize <= MAX_PROGRAM
        assert len(pattern) <= MAX_FILTER
    assert field == "source.channel_filter"


class Counted:
    """A filter that knows how often it was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.searches = inner, 0

    def search(self, text: str) -> Any:
        self.searches += 1
        return self.inner.search(text)

    def fullmatch(self, text: str) -> Any:
        raise AssertionError("a channel filter is searched")


def test_a_channel_is_matched_once_however_much_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1.9: so what a filter costs does not grow with traffic. Only channels beyond those that are remembered are matched again."""
    monkeypatch.setattr(rule_module, "MAX_CACHED_CHANNELS", 100)
    rules = [
        Rule("app", msgspec.convert({"id": f"r{n}", "source": {"channel_filter": pattern}, "target": {"routing_key": "t"}}, RuleConfig))
        for n, pattern in enumerate(HOSTILE)
    ]
    for rule in rules:
        rule._filter = Counted(rule._filter)
    among = RuleSet(rules, site="eu")
    value = msgspec.msgpack.encode(RecordBody(id="c:0", timestamp=1, messages=[Message(data="x")]))
    chance = random.Random(5)
    for _ in range(2_000):
        key = f"app:channel-{chance.randrange(100)}".encode()
        among.outcome(LogRecord("s", 0, 0, 0, key, value, Kind.MESSAGE, "x"))
    assert [rule._filter.searches for rule in rules] == [100] * len(rules)  # type: ignore[union-attr]
