"""Hours of use squeezed together: nothing grows. A minute in every test run, five with ``just soak``."""

from __future__ import annotations

import ssl
import statistics
import sys

import pytest
import trio
from load import Load, scripted, worker

from dbproxy.testing.origin import open_origin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def echo(stream):
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def soak(tmp_path, *, rounds, seconds, clients):
    """``rounds`` times load, then quiet; what was held after each round, and what was counted."""
    async with open_origin(scripted, tls=True, record="heads", keep=50) as origin, trio.open_nursery() as nursery:
        (tmp_path / "origin.pem").write_bytes(origin.ca_pem)
        listeners = await nursery.start(trio.serve_tcp, echo, 0)
        blind = listeners[0].socket.getsockname()[1]
        settings = [f"upstream_url={origin.url}", f"upstream_ca={tmp_path / 'origin.pem'}", "pool_idle_timeout=5"]
        with worker(tmp_path, f"data_dir={tmp_path / 'data'}", *settings) as (pid, port):
            bundle = (tmp_path / "data" / "ca" / "bundle.pem").read_text()
            contexts = [ssl.create_default_context(cadata=bundle) for _ in range(2)]
            contexts[1].set_alpn_protocols(["h2"])
            load = Load(pid, port, *contexts, blind)
            samples = []
            for _ in range(rounds):
                await load.run(seconds, clients)
                samples.append(await load.settle())
            counted = await load.metrics()
        nursery.cancel_scope.cancel()
    return load, samples, counted


def judge(load, samples, counted, *, growth):
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    report = "\n".join([str(load.counts), *map(str, samples)])
    assert not load.failures, f"{len(load.failures)} of {load.counts}: {load.failures[:10]}"
    assert counted["dbproxy_crashes_total"] == 0, report
    assert counted["dbproxy_journal_dropped"] == 0, report
    assert all(sample.connections == 1 and sample.exchanges == 0 for sample in samples), report
    for name in ("tasks", "sockets"):
        held = [getattr(sample, name) for sample in samples]
        assert max(held[third:]) <= max(held[:third]) + 2, f"{name} grow\n{report}"
    # Descriptors beyond sockets: log, threads' pipes and the tunnels' stock of empty pipes, which is bounded.
    assert max(sample.fds for sample in last) <= max(sample.fds for sample in middle) + 8, f"descriptors grow\n{report}"
    before, after = (statistics.median(sample.rss for sample in part) for part in (middle, last))
    assert after <= before * growth, f"RSS {before / 1e6:.1f} -> {after / 1e6:.1f} MB\n{report}"


@pytest.mark.timeout(180)
async def test_a_minute_of_everything_leaves_nothing_behind(tmp_path):
    load, samples, counted = await soak(tmp_path, rounds=9, seconds=5.0, clients=16)
    # The bounded memories of what was captured are still filling after a minute.
    judge(load, samples, counted, growth=1.10)
    assert sum(load.counts.values()) > 500


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_an_hour_squeezed_into_minutes(tmp_path):
    load, samples, counted = await soak(tmp_path, rounds=18, seconds=14.0, clients=32)
    print(load.counts, *samples, sep="\n")
    judge(load, samples, counted, growth=1.03)
    assert sum(load.counts.values()) > 5000
