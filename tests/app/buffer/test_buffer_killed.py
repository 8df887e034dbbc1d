"""kill -9 of the worker in every phase, with real processes: the agent goes on, and what was prepared is served."""

from __future__ import annotations

import os
import signal

import trio
from buffertalk import FULL, OVER, Model, bash, opening, until
from fleet import Fleet

from dbproxy.testing.conversation import Conversation, Settings
from dbproxy.testing.http_client import Way
from dbproxy.testing.origin import Script, open_origin, say


class Killed:
    """A supervised proxy, a model, and an agent that retries as the real one does."""

    def __init__(self, fleet, model):
        self.fleet = fleet
        self.model = model
        ca = fleet.data / "ca" / "bundle.pem"
        way = Way("https", "api.anthropic.com", 443, proxy=("127.0.0.1", fleet.port), extra_ca=str(ca))
        self.talk = Conversation(way, Settings(time_scale=0.2))

    def phases(self):
        return [event["to_phase"] for event in self.fleet.log() if event["event"] == "phase_transition"]

    async def reach(self, phase, count=1):
        await until(lambda: self.phases().count(phase) >= count, lambda: str(self.phases()), seconds=15)

    async def kill(self):
        before = await self.fleet.worker()
        os.kill(before, signal.SIGKILL)
        await until(lambda: self.fleet.workers() and self.fleet.workers() != [before], seconds=15)


async def test_the_worker_is_killed_in_every_phase_of_a_cycle(tmp_path):
    model = Model()
    async with open_origin(Script(decide=model), tls=True) as origin:
        fleet = Fleet(tmp_path, origin)
        try:
            fleet.serve()
            await fleet.ready()
            k = Killed(fleet, model)
            talk = k.talk
            model.tokens = OVER

            model.summaries = ["hung", "good"]
            assert await talk.ask("first") == "Well done."
            await k.reach("CHECKPOINTING")
            await k.kill()

            assert await talk.ask("second") == "Well done."
            await k.reach("WAL_ACTIVE")
            await trio.sleep(0.1)
            await k.kill()

            # What the one that was killed had prepared is served by the next, in the middle of a tool round; and that
            # one is killed before the client says that it took it.
            full = {"input_tokens": 10, "cache_read_input_tokens": FULL, "output_tokens": 5}
            model.says.append(bash("PLANTED").but(usage=full))
            model.says.append(say("Gone on.", head_delay=0.5))
            model.tokens = 3_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk.ask, "third")
                await k.reach("PROVISIONAL")
                await trio.sleep(0.2)
                await k.kill()
            assert talk.answers[-1] in ("Gone on.", "Well done.")
            assert talk.compactions == 1
            assert "ORIGIN-SUMMARY 2" in opening(talk)
            assert await talk.ask("fourth") == "Well done."
            await until(lambda: [e for e in fleet.log() if e["event"] == "swap_confirmed"], seconds=15)
            await k.reach("IDLE")
            await k.kill()

            model.tokens = OVER
            assert await talk.ask("fifth") == "Well done."
            await k.reach("WAL_ACTIVE", 2)
            await talk.compact("auto")
            assert "ORIGIN-SUMMARY 3" in opening(talk)
            compactions = [r for r in origin.requests if r.role == "compaction"]
            assert len(compactions) == 3  # three checkpoints, one of them hung; none of the client's own
            assert not [e for e in fleet.log() if e["event"] in ("plugin_failed", "buffer_crashed")]
            await talk.client.close()
        finally:
            fleet.end()
