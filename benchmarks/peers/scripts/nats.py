"""``python -m benchmarks.peers.scripts.nats reply|request tls://HOST:PORT?CA``."""

import ssl
import sys

import nats
from benchmarks import rounds

SUBJECT = "bench.nothing"


async def main():
    """Reply, or measure requests, until the parent is gone."""
    role, url = sys.argv[1:]
    url, _, ca = url.partition("?")
    options = {"tls": ssl.create_default_context(cafile=ca)} if ca else {}
    client = await nats.connect(url, **options)

    async def reply(message):
        await message.respond(message.data)

    async def trip():
        await client.request(SUBJECT, b'{"x":1}', timeout=30)

    if role == "reply":
        await client.subscribe(SUBJECT, cb=reply)
        await client.flush()
        await rounds.obey({})
    else:
        trips = {"request": trip}
        await rounds.obey(rounds.measures(trips), trips)
    await client.close()


rounds.run(main)
