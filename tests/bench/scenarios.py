"""One function per figure: what is run, with whom, and how the figure comes out of it.

Every scenario runs all its contestants inside each round, one after the other, and takes medians over the rounds, so
that a busy neighbour hits all of them. "Added" is always against the direct run of the same round.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from contestants import HERE, HOST, Contestant, Field, cpus, quick_priority

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1e6
_PATIENCE = 180.0  # seconds for one script
_pause = threading.Event().wait


class Invalid(Exception):
    """A run did not do what it should have done; its figures mean nothing."""


@dataclass
class Figure:
    """One line of the table. ``ours`` and ``peer`` in ``unit``; ``reach`` bounds ``ours``, or ``ratio`` to the peer."""

    name: str
    unit: str
    ours: float
    reach: str
    met: bool
    peer_name: str = ""
    peer: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer is not None and self.peer > 0 and self.ours > 0 else None


@dataclass
class Bench:
    """Contestants that are up, how much to run, and the raw results of every run."""

    field: Field
    quick: bool
    raw: list[dict[str, Any]] = field(default_factory=list)
    up: dict[str, Contestant] = field(default_factory=dict)

    def get(self, name: str) -> Contestant:
        """A contestant, started at first use."""
        if name not in self.up:
            makers: dict[str, Callable[[], Contestant]] = {
                "direct": self.field.direct,
                "dbproxy": self.field.ours,
                "dbproxy, every event accumulated": lambda: self.field.ours("accumulating", "bench_accumulator"),
                "mitmdump": self.field.mitmdump,
                # Offers HTTP/2 to a client whatever the server behind it speaks, as we do.
                "mitmdump, lazy": lambda: self.field.mitmdump("mitmdump-lazy", "connection_strategy=lazy"),
                "nginx": self.field.nginx,
                "haproxy": self.field.haproxy,
            }
            self.up[name] = makers[name]()
            if name not in ("direct", "haproxy"):
                self.load(self.up[name], "--count", "60", "--conns", "2", scenario="warm-up")
        return self.up[name]

    def rounds(self, full: int) -> int:
        return max(2, full // 2) if self.quick else full

    def alone(self, family: str, script: str, what: str) -> dict[str, Any]:
        """What one of our scripts measures in a process of its own, given a scratch folder: the JSON that it prints."""
        folder = self.field.folder / family
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(HERE / script), what, str(folder)], env=self.field.environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False,
        )  # fmt: skip
        shutil.rmtree(folder)
        if done.returncode:
            raise Invalid(f"{what}: {done.stderr.strip()[-300:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        self.raw.append({"scenario": f"{family}-{what}", **found})
        return found

    # ---- running the client

    def command(self, one: Contestant, *arguments: str, connect: str | None = None) -> list[str]:
        connect = one.connect if connect is None else connect
        way = ["--connect", connect] if connect else []
        return [self.field.lt, "client", "--port", str(one.port), "--host", HOST, *way, *arguments]

    def place(self, one: Contestant, *, same_core: bool) -> int:
        """Pin proxy and server; the core for the client."""
        first, last = cpus()
        one.pin(first)
        core = first if same_core else last
        self.field.server.pin(core)
        return core

    def start(self, command: list[str], core: int) -> subprocess.Popen[str]:
        def prepare() -> None:
            os.sched_setaffinity(0, {core})
            quick_priority()

        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)

    def finish(self, process: subprocess.Popen[str], one: Contestant, scenario: str) -> dict[str, Any]:
        """What a client said when it ended. Raises Invalid if anything was not as it should be."""
        try:
            said, complaint = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Invalid(f"{scenario}, {one.name}: the client did not end") from None
        if process.returncode or not said:
            raise Invalid(f"{scenario}, {one.name}: the client failed: {complaint.strip()}")
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
        one.must_live()
        if result["errors"] or not result["requests"] or result["events"] < result["expected_events"]:
            raise Invalid(
                f"{scenario}, {one.name}: {result['errors']} errors: {result['complaint'] or 'bytes missing'}"
            )
        self.raw.append({"scenario": scenario, "contestant": one.name, **result})
        return result

    def load(
        self, one: Contestant, *arguments: str, scenario: str, same_core: bool = False, connect: str | None = None
    ) -> dict[str, Any]:
        """Run a client to its end; ``cpu`` in the result are the proxy's CPU seconds."""
        core = self.place(one, same_core=same_core)
        before = one.cpu()
        result = self.finish(self.start(self.command(one, *arguments, connect=connect), core), one, scenario)
        result["cpu"] = one.cpu() - before
        return result


def _median(values: list[float]) -> float:
    return statistics.median(values)


def small(bench: Bench) -> list[Figure]:
    """Small JSON requests on one warm connection, all on one core: pure work."""
    added: dict[str, list[float]] = {"dbproxy": [], "mitmdump": [], "nginx": []}
    slow: dict[str, list[float]] = {name: [] for name in added}
    for _ in range(bench.rounds(7)):
        count = {"mitmdump": 400}
        direct = {"p50": 0.0, "p90": 0.0}
        for name in ("direct", *added):
            one = bench.get(name)
            run = bench.load(
                one, "--count", str(count.get(name, 1200)), "--warm", "100", scenario="small", same_core=True
            )
            if name == "direct":
                direct = run["latency"]
            else:
                added[name].append(run["latency"]["p50"] - direct["p50"])
                slow[name].append(run["latency"]["p90"] - direct["p90"])
    ours, mitm, nginx = (_median(added[name]) for name in ("dbproxy", "mitmdump", "nginx"))
    return [
        Figure("warm small request, added p50", "us", ours, "1/8 of mitmdump", ours <= mitm / 8, "mitmdump", mitm),
        Figure("the same beside nginx", "us", ours, "", True, "nginx", nginx),
        # What works beside the relay shows here first, and hardly in the median.
        Figure("the same, p90", "us", _median(slow["dbproxy"]), "", True, "mitmdump", _median(slow["mitmdump"])),
    ]


def h2(bench: Bench) -> list[Figure]:
    """The same small requests from a client that speaks HTTP/2 alone; the server behind all of them speaks HTTP/1.1."""
    added: dict[str, list[float]] = {"dbproxy": [], "mitmdump, lazy": []}
    for _ in range(bench.rounds(7)):
        direct = 0.0
        for name in ("direct", *added):
            way = [] if name == "direct" else ["--h2"]
            count = "400" if name == "mitmdump, lazy" else "1200"
            run = bench.load(bench.get(name), "--count", count, "--warm", "100", *way, scenario="h2", same_core=True)
            if name == "direct":
                direct = run["latency"]["p50"]
            else:
                added[name].append(run["latency"]["p50"] - direct)
    ours, mitm = (_median(runs) for runs in added.values())
    return [
        Figure(
            "warm small request over HTTP/2, added p50",
            "us",
            ours,
            "1/5 of mitmdump",
            ours <= mitm / 5,
            "mitmdump",
            mitm,
        )
    ]


def flat(bench: Bench) -> list[Figure]:
    """Four streams as fast as they go: CPU per event."""
    names = ("dbproxy", "nginx", "mitmdump", "dbproxy, every event accumulated")
    cost: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(bench.rounds(7)):
        for name in names:
            streams = 12 if name == "mitmdump" else 60
            run = bench.load(
                bench.get(name), "--conns", "4", "--count", str(streams), "--answer", "sse:2000", scenario="flat"
            )
            cost[name].append(run["cpu"] / run["events"] * 1e6)
    ours, nginx, mitm, whole = (_median(cost[name]) for name in names)
    return [
        Figure("CPU per SSE event, flat out", "us", ours, "2 x nginx", ours <= 2 * nginx, "nginx", nginx),
        Figure("CPU per SSE event, flat out", "us", ours, "1/4 of mitmdump", ours <= mitm / 4, "mitmdump", mitm),
        Figure("the same, every event accumulated", "us", whole, "", True, "mitmdump", mitm),
    ]


def _paced(bench: Bench, streams: int, peers: tuple[str, ...], *, same_core: bool) -> dict[str, list[dict[str, float]]]:
    """Streams of 50 events a second; added delay per event, and the share of a core that the proxy used.

    Only what is sent between start-up and end counts: opening the tunnels is another figure.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    skip = 1.0 + streams / 128
    events = int(((2.5 if bench.quick else 3.5) + skip) * 50)
    for number in range(bench.rounds(4)):
        direct: dict[str, float] = {}
        for name in ("direct", *peers):
            if name == "mitmdump" and number:
                continue  # it saturates a core; one round shows that
            arguments = ["--conns", str(streams), "--count", str(streams), "--answer", f"paced:50:{events}"]
            arguments += ["--skip-ms", str(int(skip * 1000)), "--secs", "30"]
            run = bench.load(bench.get(name), *arguments, scenario=f"paced-{streams}", same_core=same_core)
            delay = run["event"]
            if name == "direct":
                direct = delay
                continue
            added = {which: (delay[which] - direct[which]) / 1e3 for which in ("p50", "p99")}
            found[name].append(added | {"core": run["cpu"] / run["seconds"] * 100})
    return found


def _paced_figures(
    found: dict[str, list[dict[str, float]]], streams: int, peer: str, reach: dict[str, float]
) -> list[Figure]:
    figures = []
    for which, limit in reach.items():
        ours, theirs = (_median([run[which] for run in found[name]]) for name in ("dbproxy", peer))
        name = f"{streams} streams at 50 events/s, added {which}"
        figures.append(Figure(name, "ms", ours, f"{limit} ms", ours <= limit, peer, theirs))
    return figures


def paced_32(bench: Bench) -> list[Figure]:
    """32 streams at 50 events a second, all on one core."""
    found = _paced(bench, 32, ("dbproxy", "nginx"), same_core=True)
    return _paced_figures(found, 32, "nginx", {"p50": 0.15, "p99": 0.8})


def paced_256(bench: Bench) -> list[Figure]:
    """256 streams at 50 events a second, the proxy on a core of its own."""
    found = _paced(bench, 256, ("dbproxy", "nginx", "mitmdump"), same_core=False)
    figures = _paced_figures(found, 256, "mitmdump", {"p50": 0.7, "p99": 20.0})
    core, nginx = (_median([run["core"] for run in found[name]]) for name in ("dbproxy", "nginx"))
    return [*figures, Figure("256 streams, share of a core", "%", core, "90 %", core <= 90, "nginx", nginx)]


def bulk(bench: Bench) -> list[Figure]:
    """10 MB answers and 10 MB requests: CPU per MB."""
    figures = []
    for way, arguments in (("down", ["--answer", "bytes:10000000"]), ("up", ["--body", "10000000"])):
        cost: dict[str, list[float]] = {"dbproxy": [], "nginx": []}
        for _ in range(bench.rounds(5)):
            for name, costs in cost.items():
                run = bench.load(bench.get(name), "--count", "12", *arguments, scenario=f"bulk-{way}")
                costs.append(run["cpu"] * 1e6 / ((run["bytes_down"] + run["bytes_up"]) / MB))
        ours, nginx = _median(cost["dbproxy"]), _median(cost["nginx"])
        figures.append(Figure(f"10 MB {way}, CPU per MB", "us", ours, "nginx", ours <= nginx, "nginx", nginx))
    return figures


def connect(bench: Bench) -> list[Figure]:
    """A new tunnel, TLS and the first request, one after the other, the upstream pool warm."""
    added: dict[str, list[float]] = {"dbproxy": [], "nginx": []}
    for _ in range(bench.rounds(7)):
        direct = 0.0
        for name in ("direct", *added):
            run = bench.load(
                bench.get(name), "--new", "--count", "150", "--warm", "10", scenario="connect", same_core=True
            )
            if name == "direct":
                direct = run["whole"]["p50"]
            else:
                added[name].append((run["whole"]["p50"] - direct) / 1e3)
    ours, nginx = _median(added["dbproxy"]), _median(added["nginx"])
    return [Figure("new tunnel, TLS and first request, added", "ms", ours, "1.0 ms", ours <= 1.0, "nginx", nginx)]


def storm(bench: Bench) -> list[Figure]:
    """256 tunnels at once while 32 streams run: the longest that any event of theirs is delayed."""
    worst: dict[str, list[float]] = {"dbproxy": [], "direct": []}
    for _ in range(bench.rounds(5)):
        for name in ("direct", "dbproxy"):
            one = bench.get(name)
            core = bench.place(one, same_core=False)
            arguments = [
                "--conns",
                "32",
                "--count",
                "32",
                "--answer",
                "paced:50:200",
                "--skip-ms",
                "1000",
                "--secs",
                "30",
            ]
            streams = bench.start(bench.command(one, *arguments), core)
            _pause(1.5)
            rush = bench.command(one, "--conns", "256", "--count", "256", "--hold", "0.5", "--secs", "30")
            bench.finish(bench.start(rush, core), one, "storm")
            worst[name].append(bench.finish(streams, one, "storm-streams")["event"]["max"] / 1e3)
    ours, direct = _median(worst["dbproxy"]), _median(worst["direct"])
    return [Figure("256 tunnels at once, longest delay", "ms", ours, "20 ms", ours <= 20, "direct", direct)]


def tunnel(bench: Bench) -> list[Figure]:
    """Bytes through a blind tunnel: CPU per MB beside haproxy relaying TCP."""
    figures = []
    target = f"127.0.0.1:{bench.field.server.port}"
    for way, arguments in (("down", ["--answer", "bytes:10000000"]), ("up", ["--body", "10000000"])):
        cost: dict[str, list[float]] = {"dbproxy": [], "haproxy": []}
        for _ in range(bench.rounds(5)):
            for name, costs in cost.items():
                run = bench.load(
                    bench.get(name), "--count", "20", *arguments, scenario=f"tunnel-{way}",
                    connect=target if name == "dbproxy" else "",
                )  # fmt: skip
                costs.append(run["cpu"] * 1e6 / ((run["bytes_down"] + run["bytes_up"]) / MB))
        ours, peer = _median(cost["dbproxy"]), _median(cost["haproxy"])
        figures.append(Figure(f"blind tunnel {way}, CPU per MB", "us", ours, "haproxy", ours <= peer, "haproxy", peer))
    return figures


def memory(bench: Bench) -> list[Figure]:
    """Resident memory: at start with the certificates on the disk, per idle connection, and after large bodies."""
    first = bench.field.ours("memory", "bench_holder")
    bench.load(first, "--count", "2", scenario="memory-first")
    bench.field.stop(first)
    one = bench.field.ours("memory", "bench_holder", again=True)
    start = one.rss()
    bench.load(one, "--count", "200", "--conns", "4", scenario="memory-warm")
    warm = one.rss()
    count = 200 if bench.quick else 500
    core = bench.place(one, same_core=False)
    idle = bench.command(one, "--conns", str(count), "--count", str(count), "--hold", "1.5", "--secs", "40")
    process = bench.start(idle, core)
    for line in process.stdout or ():
        if "holding" in line:
            break
    _pause(0.8)
    per_connection = (one.rss() - warm) / count
    bench.finish(process, one, "memory-idle")
    before = one.rss()
    bench.load(one, "--count", "3", "--answer", "bytes:50000000", scenario="memory-down")
    bench.load(one, "--count", "3", "--body", "32000000", scenario="memory-held")
    _pause(0.5)
    after = (one.rss() - before) / MB
    bench.field.stop(one)
    return [
        Figure("worker RSS at start", "MB", start / MB, "45 MB", start <= 45 * MB),
        Figure("RSS per idle intercepted connection", "KB", per_connection / 1e3, "75 KB", per_connection <= 75e3),
        Figure("RSS more after any body", "MB", after, "10 MB", after <= 10),
    ]


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "memory": memory,
    "small": small,
    "h2": h2,
    "flat": flat,
    "paced-32": paced_32,
    "paced-256": paced_256,
    "bulk": bulk,
    "connect": connect,
    "storm": storm,
    "tunnel": tunnel,
}
