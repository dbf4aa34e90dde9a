"""The links of this edge: `relay.link.io.dial` on one side, events and effects on the other."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import cast

from edge.config import EdgeConfig
from edge.effects import LinkSend
from edge.events import Event, LinkFrames, LinkLost, LinkUp
from relay.link.frames import Frame, ToEdge, Welcome
from relay.link.io.dial import Dialer


class Uplink:
    __slots__ = ("_post", "dialer")

    def __init__(self, config: EdgeConfig, boot: str, context: ssl.SSLContext, post: Callable[[Event], None]) -> None:
        self._post = post
        self.dialer = Dialer(
            cores=config.link.cores,
            context=context,
            trust_domain=config.link.trust_domain,
            site=config.site,
            node=config.node,
            boot=boot,
            on_up=self._up,
            on_frames=self._frames,
            on_lost=self._lost,
            limits=config.link.limits,
        )

    def _up(self, link: int, welcome: Welcome) -> None:
        self._post(LinkUp(link, welcome))

    def _frames(self, link: int, frames: list[Frame]) -> None:
        self._post(LinkFrames(link, cast("list[ToEdge]", frames)))

    def _lost(self, link: int, why: str) -> None:
        self._post(LinkLost(link, why))

    def send(self, effect: LinkSend) -> None:
        self.dialer.send(effect.link, effect.frame, effect.lane)
