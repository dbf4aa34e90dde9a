"""The node hears once that a link fills up, and once that it has room again."""

from __future__ import annotations

import asyncio
from collections import Counter

from core.events import Congested
from core.io.congestion import CHECK_S, Congestion


def test_a_link_is_congested_from_the_bound_on_until_half_of_it_has_left() -> None:
    asyncio.run(_fill_and_empty())


async def _fill_and_empty() -> None:
    queued: Counter[int] = Counter()
    told: list[Congested] = []
    congestion = Congestion(lambda link: queued[link], told.append, 1_000)
    for size in (500, 999):
        queued[1] = size
        congestion.sent(1)
    assert told == []
    queued |= Counter({1: 1_000, 2: 5_000})
    for link in (1, 1, 2, 1):
        congestion.sent(link)
    assert told == [Congested(1, on=True), Congested(2, on=True)]
    queued[1] = 500
    await asyncio.sleep(3 * CHECK_S)
    assert told[2:] == []
    queued[1] = 499
    await asyncio.sleep(3 * CHECK_S)
    del queued[2]  # the link is lost
    await asyncio.sleep(3 * CHECK_S)
    assert told[2:] == [Congested(1, on=False), Congested(2, on=False)]
    queued[1] = 1_000
    congestion.sent(1)
    congestion.close()
    queued[1] = 0
    await asyncio.sleep(3 * CHECK_S)
    assert told[4:] == [Congested(1, on=True)]
