"""Publishes COUNT messages with the ably package of PyPI and prints those that its subscriber got, as a JSON array."""

import asyncio
import json
import os

from ably import AblyRealtime


async def main() -> None:
    count = int(os.environ["COUNT"])
    client = AblyRealtime(token=os.environ["TOKEN"], endpoint=os.environ["HOST"])
    channel = client.channels.get("order:pypi")
    got: list[int] = []
    everything = asyncio.Event()

    def on_message(message: object) -> None:
        got.append(message.data["n"])  # type: ignore[attr-defined]
        if len(got) >= count:
            everything.set()

    await channel.subscribe(on_message)
    await asyncio.gather(*(channel.publish("n", {"n": n}) for n in range(count)))
    await asyncio.wait_for(everything.wait(), 30)
    await asyncio.sleep(0.5)  # a doubled one would come now
    print(json.dumps(got))
    await client.close()


asyncio.run(main())
