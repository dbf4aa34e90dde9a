"""Which link has which channel open, under which number, and on whose right."""

from __future__ import annotations

from collections.abc import Iterator

from relay.link.frames import Stream


class OpenChannel:
    """One channel, open on one link. `live` once `Opened` was sent: from then on every record of the channel is sent as it is read."""

    __slots__ = ("app", "key", "link", "live", "name", "partition", "ref", "stream", "witness")

    def __init__(self, link: int, ref: int, app: str, name: str, key: bytes, stream: Stream, partition: int, witness: str) -> None:
        self.link = link
        self.ref = ref
        self.app = app
        self.name = name
        self.key = key
        self.stream = stream
        self.partition = partition
        self.witness = witness
        self.live = False


class Channels:
    """All open channels of a core. A record is looked up once by its key; a channel that nobody has open costs that one look-up."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, list[OpenChannel]] = {}
        self._by_link: dict[int, dict[int, OpenChannel]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_link.values()))

    def link_up(self, link: int) -> None:
        self._by_link[link] = {}

    def link_lost(self, link: int) -> None:
        for channel in list(self._by_link.get(link, {}).values()):
            self.shut(link, channel.ref)
        self._by_link.pop(link, None)

    def count(self, link: int) -> int:
        return len(self._by_link[link])

    def get(self, link: int, ref: int) -> OpenChannel | None:
        channels = self._by_link.get(link)
        return None if channels is None else channels.get(ref)

    def holders(self, key: bytes) -> list[OpenChannel] | None:
        """Who gets the records with this key, for the hot path; None if nobody has the channel open."""
        return self._by_key.get(key)

    def add(self, channel: OpenChannel) -> None:
        """Reserve the channel's number on its link. Records flow from `go_live` on."""
        self._by_link[channel.link][channel.ref] = channel

    def go_live(self, channel: OpenChannel) -> None:
        channel.live = True
        self._by_key.setdefault(channel.key, []).append(channel)

    def shut(self, link: int, ref: int) -> OpenChannel | None:
        channels = self._by_link.get(link)
        channel = None if channels is None else channels.pop(ref, None)
        if channel is not None and channel.live:
            channel.live = False
            holders = self._by_key[channel.key]
            holders.remove(channel)
            if not holders:
                del self._by_key[channel.key]
        return channel

    def of_app(self, app: str) -> Iterator[OpenChannel]:
        """Every open channel of an app. O(open channels): for the rare end of an app."""
        return (channel for channels in self._by_link.values() for channel in channels.values() if channel.app == app)

    def of_partition(self, link: int, partition: int) -> list[OpenChannel]:
        """The channels of one partition that a link has open. O(open channels of the link): for the rare gap in the log."""
        return [channel for channel in self._by_link.get(link, {}).values() if channel.partition == partition]
