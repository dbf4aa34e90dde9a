"""Connects with the ably package of PyPI and attaches; prints the code of the first refusal."""

import asyncio
import os

from ably import AblyRealtime
from ably.util.exceptions import AblyException


async def give_token(_params: object) -> str:
    return os.environ["TOKEN"]


async def main() -> None:
    # Without a way to renew, the library reports its own 40171 in place of the server's code
    client = AblyRealtime(auth_callback=give_token, endpoint=os.environ["HOST"], auto_connect=False)
    refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_state(change: object) -> None:
        reason = change.reason  # type: ignore[attr-defined]
        if reason is not None and not refused.done():
            refused.set_result(reason.cause.code if reason.cause is not None else reason.code)

    client.connection.on(on_state)
    client.connect()

    async def attach() -> None:
        try:
            await client.channels.get(os.environ["CHANNEL"]).attach()
        except AblyException as error:
            if not refused.done():
                refused.set_result(error.code)

    attaching = asyncio.create_task(attach())
    print(await asyncio.wait_for(refused, 20))
    attaching.cancel()
    await client.close()


asyncio.run(main())
