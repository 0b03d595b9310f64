"""``python -m benchmarks.peers.scripts.spade asking|replying PORT``."""

import asyncio
import itertools
import sys

import spade
from benchmarks import rounds
from spade.agent import Agent
from spade.behaviour import CyclicBehaviour
from spade.message import Message


class Replying(CyclicBehaviour):
    """Replies to each message with its own body."""

    async def run(self):
        """Reply once."""
        message = await self.receive(timeout=10)
        if message is not None:
            reply = message.make_reply()
            reply.body = message.body
            await self.send(reply)


class Asking(CyclicBehaviour):
    """Settles the future of each reply."""

    def __init__(self):
        super().__init__()
        self.waiting = {}
        self.numbers = itertools.count()

    async def run(self):
        """Take one reply."""
        message = await self.receive(timeout=10)
        if message is not None:
            self.waiting.pop(message.thread).set_result(message)

    async def trip(self):
        """Send a message and wait for its reply."""
        thread = str(next(self.numbers))
        answer = self.waiting[thread] = asyncio.get_running_loop().create_future()
        message = Message(to="replying@localhost", body='{"x":1}', thread=thread)
        # A thread goes along with metadata, or not at all.
        message.set_metadata("performative", "request")
        await self.send(message)
        await answer


async def main():
    """Reply, or measure, until the parent is gone."""
    role, port = sys.argv[1:]
    agent = Agent(f"{role}@localhost", role, port=int(port))
    behaviour = Asking() if role == "asking" else Replying()
    agent.add_behaviour(behaviour)
    await agent.start(auto_register=False)
    trips = {"message": behaviour.trip} if role == "asking" else {}
    await rounds.obey(rounds.measures(trips) if trips else {}, trips)
    await agent.stop()


spade.run(main())
