"""Publishes with the ably package of PyPI, then reads the channel's history page by page while more is published; prints the pages."""

import asyncio
import json
import os

from ably import AblyRest


async def main() -> None:
    host, _, port = os.environ["HOST"].partition(":")
    async with AblyRest(token=os.environ["TOKEN"], endpoint=host, tls_port=int(port)) as client:
        channel = client.channels.get("history:pypi/with a slash, and a comma")
        for number in range(5):
            await channel.publish(str(number), {"n": number})
        page = await channel.history(limit=2)
        pages = [[message.data["n"] for message in page.items]]
        while page.has_next():
            await channel.publish("later", {"n": 99})
            page = await page.next()
            pages.append([message.data["n"] for message in page.items])
        again = await page.first()
        pages.append([message.data["n"] for message in again.items])
        print(json.dumps(pages))


asyncio.run(main())
