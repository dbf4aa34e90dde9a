"""Channel names: what a client may write, what it means, and where the channel's records live.

`[qualifier?params]path`: a qualifier (`meta`, `filter=BASE64`) makes another channel of the path; params are those of ATTACH, written
inline, and make no other channel. Source: Ably protocol docs, 3.1 and 3.2.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from urllib.parse import parse_qsl

from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL


@dataclass(frozen=True, slots=True)
class ChannelName:
    """One spelling of a channel. Two spellings (`foo`, `[?rewind=1]foo`) are two attachments of one channel."""

    text: str
    """As the client spelled it: every answer repeats exactly this."""
    name: str
    """Without the inline params, with `[meta]` or `[filter=…]`."""
    params: dict[str, str]
    """The inline params, percent-decoded; the last of equal names wins. Treat as read-only."""
    qualifier: str | None
    """`meta`, `filter` or None."""
    qualifier_value: str
    """What follows `filter=`; otherwise empty."""
    path: str
    """Without any qualifier: the channel that a `[filter=…]` is derived from."""

    @property
    def resource(self) -> str:
        """What a capability must name: of a derived channel `[filter]path`, whatever the filter is."""
        return f"[filter]{self.path}" if self.qualifier == "filter" else self.name

    @property
    def log_name(self) -> str:
        """The channel whose log carries the events of this one: a derived channel reads its base, a metachannel has a log of its own."""
        return self.path if self.qualifier == "filter" else self.name


def check_name(text: str) -> None:
    """What holds for every spelling, with and without a qualifier. Raises RelayError 40010."""
    if not isinstance(text, str) or not text:
        raise RelayError(40010, "Invalid channel name: empty")
    if len(text) > PROTOCOL.max_channel_name_bytes or (not text.isascii() and not _encodes_within(text, PROTOCOL.max_channel_name_bytes)):
        raise RelayError(40010, f"Invalid channel name: longer than {PROTOCOL.max_channel_name_bytes} bytes, or not Unicode text")
    if "\n" in text or "\r" in text:
        raise RelayError(40010, "Invalid channel name: contains a newline")
    if text[0] == ":":
        raise RelayError(40010, "Invalid channel name: begins with ':'")


def parse_channel(text: str) -> ChannelName:
    """Raises RelayError 40010. Fails the channel or the operation, never the connection."""
    check_name(text)
    return _parse_qualified(text) if text[0] == "[" else ChannelName(text, text, {}, None, "", text)


def _parse_qualified(text: str) -> ChannelName:
    params: dict[str, str] = {}
    qualifier, value, path = None, "", text
    # Inline params may stand inside the qualifier (`[meta?rewind=1]x`) or in brackets of their own before it (`[?rewind=1][meta]x`).
    while path.startswith("["):
        inner, bracket, rest = path[1:].partition("]")
        spec, question, query = inner.partition("?")
        word, _, argument = spec.partition("=")
        known = spec == "meta" or (word == "filter" and argument != "")
        params_alone = spec == "" and question == "?" and path is text
        if not bracket or qualifier is not None or not (known or params_alone):
            raise RelayError(40010, "Invalid qualifier in channelId; known are [?params], [meta] and [filter=…]")
        if known:
            qualifier, value = word, argument
        if question:
            try:
                params.update(parse_qsl(query, keep_blank_values=True))
            except ValueError:
                raise RelayError(40010, "Invalid qualifier in channelId; params are not a query string") from None
        path = rest
    if not path or path[0] == ":":
        raise RelayError(40010, "Invalid channel name: nothing, or ':', after the qualifier")
    name = path if qualifier is None else f"[{qualifier}={value}]{path}" if value else f"[{qualifier}]{path}"
    return ChannelName(text, name, params, qualifier, value, path)


def _encodes_within(text: str, bound: int) -> bool:
    try:
        return len(text.encode()) <= bound
    except UnicodeEncodeError:  # a lone surrogate: no UTF-8 client, log key or capability could name it
        return False


CHANNEL_LIFECYCLE = "[meta]channel.lifecycle"
CONNECTION_LIFECYCLE = "[meta]connection.lifecycle"
META_LOG = "[meta]log"
META_STATS = "[meta]stats:minute"
METACHANNELS = frozenset({CHANNEL_LIFECYCLE, CONNECTION_LIFECYCLE, META_LOG, META_STATS})
"""Those that there are. Clients read them; only cores write."""


def log_key(app: str, name: str) -> bytes:
    """The key of the channel's records. `name` is without inline params. App ids contain no ':'."""
    return f"{app}:{name}".encode()


def is_qualified(key: bytes) -> bool:
    """Whether a log key is that of a metachannel or of another channel with a qualifier."""
    return key.startswith(b"[", key.find(b":") + 1)


def partition_of(key: bytes, partitions: int) -> int:
    """Edge and core compute the same: CRC-32 (ISO 3309) of the log key."""
    return zlib.crc32(key) % partitions


def namespace_of(name: str) -> str:
    """The text before the first ':' (all of it if there is none), qualifiers left out."""
    while name.startswith("["):
        _, bracket, rest = name.partition("]")
        if not bracket:
            break
        name = rest
    return name.partition(":")[0]
