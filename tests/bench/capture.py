"""The figures of capture: size on disk, work per turn, linking, streams beside it, search, lists, and the start.

Everything but the streams and the start is measured by storing.py in a process of its own. There is no peer: none of
the other proxies keeps what it relays.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import threading
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from contestants import HERE, HOST, Contestant, free_port
from scenarios import MB, Bench, Figure, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_pause = threading.Event().wait
_PATIENCE = 180.0
RATE = 10  # bodies a second beside the streams


def _alone(bench: Bench, what: str, *, keep: Path | None = None) -> dict[str, Any]:
    """What storing.py found; in ``keep``, or in a folder that goes."""
    folder = keep or bench.field.folder / "storing"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "storing.py"), what, str(folder)]
    done = subprocess.run(
        command, env=bench.field.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_PATIENCE, check=False,
    )  # fmt: skip
    if keep is None:
        shutil.rmtree(folder)
    if done.returncode:
        raise Invalid(f"{what}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    bench.raw.append({"scenario": f"capture-{what}", **found})
    return found


def size(bench: Bench) -> list[Figure]:
    """A conversation of 200 turns, 95 MB of bodies, on disk with all that belongs to it."""
    found = _alone(bench, "size")
    if found["exact"] != 200:
        raise Invalid(f"size: only {found['exact']} of 200 bodies can be rebuilt")
    figures = []
    for name, which in (("200 turns (95 MB) on disk", "with"), ("the same without the search index", "without")):
        taken = found[which] / MB
        figures.append(Figure(name, "MB", taken, "1.0 MB", taken <= 1.0))
    return [*figures, Figure("one body out of its middle", "ms", found["access_ms"], "", True)]


def turn(bench: Bench) -> list[Figure]:
    """CPU per turn of 900 KB in the two threads of capture."""
    taken = median(_alone(bench, "turn")["ms"] for _ in range(bench.rounds(5)))
    return [Figure("capture of a 900 KB turn, off the loop", "ms", taken, "3 ms", taken <= 3)]


def link(bench: Bench) -> list[Figure]:
    """Reading, classifying and linking one more turn."""
    runs = [_alone(bench, "link") for _ in range(bench.rounds(5))]
    figures = []
    for which, name, limit in (("small", "200 KB", 0.5), ("large", "2 MB", 3.0)):
        taken = median(run[which] for run in runs)
        figures.append(Figure(f"linking and classifying {name}", "ms", taken, f"{limit} ms", taken <= limit))
    return figures


def search(bench: Bench) -> list[Figure]:
    """The slowest of several searches over more than 1 GB of bodies."""
    found = _alone(bench, "search")
    if found["raw"] < 1e9 or not sum(found["hits"].values()):
        raise Invalid("search: too little was stored, or nothing was found")
    slowest = max(found["ms"].values())
    return [
        Figure("search over 1 GB of bodies, slowest", "ms", slowest, "100 ms", slowest <= 100),
        Figure("that 1 GB on disk", "MB", found["file"] / MB, "", True),
    ]


def many(bench: Bench) -> list[Figure]:
    """The newest exchanges of 100,000 in 10,000 conversations, and a start with such a file against one without."""
    folder = bench.field.folder / "many"
    found = _alone(bench, "many", keep=folder)
    times: dict[str, list[float]] = {"empty": [], "full": []}
    empty, full = folder / "empty", folder / "data"
    _started(bench, empty)  # makes the authority, which is done once
    shutil.copytree(empty / "ca", full / "ca")
    for _ in range(bench.rounds(10)):
        for data, name in ((empty, "empty"), (full, "full")):
            times[name].append(_started(bench, data))
    bench.raw.append({"scenario": "capture-start", **times})
    more = median(one - other for one, other in zip(times["full"], times["empty"], strict=True))
    return [
        Figure("newest 50 of 100,000 exchanges", "ms", found["newest"], "20 ms", found["newest"] <= 20),
        Figure("newest 50 of 10,000 conversations", "ms", found["conversations"], "", True),
        Figure("start with 10,000 conversations, added", "ms", more, "50 ms", more <= 50),
    ]


def _started(bench: Bench, data: Path) -> float:
    """Milliseconds from `dbproxy serve` to its first answer."""
    port = free_port()
    env = bench.field.environment() | {"DBPROXY_LISTEN": f"127.0.0.1:{port}", "DBPROXY_DATA_DIR": str(data)}
    log = bench.field.folder / "start.log"
    with log.open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "dbproxy", "serve"], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    one = Contestant("dbproxy serve", port, f"{HOST}:443", process, log)
    bench.field.started.append(one)
    while True:
        one.must_live()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/health")
            healthy = connection.getresponse().status == 200
            connection.close()
            if healthy:
                taken = (time.monotonic() - began) * 1e3
                bench.field.stop(one)
                return taken
        except OSError:
            pass
        if time.monotonic() > began + 30:
            raise Invalid("dbproxy serve did not answer in time")
        _pause(0.001)


#: How the same load is relayed: kept, only linked, and not looked at.
WAYS = {"on": {}, "off": {"DBPROXY_CAPTURE": "off"}, "blind": {"DBPROXY_CAPTURE": "off", "DBPROXY_PASSTHROUGH": "true"}}


def streams(bench: Bench) -> list[Figure]:
    """32 streams at 50 events a second while 900 KB bodies are captured: each event's delay, against not capturing."""
    proxies = {name: bench.field.ours(f"capture-{name}", **env) for name, env in WAYS.items()}
    delays: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    seconds = 3.0 if bench.quick else 4.0
    arguments = ["--conns", "32", "--count", "32", "--answer", f"paced:50:{int((seconds + 1.5) * 50)}"]
    arguments += ["--skip-ms", "1000", "--secs", "30"]
    for number in range(bench.rounds(6)):
        for name, one in proxies.items():
            data = bench.field.folder / f"capture-{name}"
            core = bench.place(one, same_core=False)
            command = [sys.executable, str(HERE / "uploader.py"), str(one.port), str(data / "ca" / "bundle.pem")]
            upload = subprocess.Popen(
                [*command, str(RATE), str(seconds), str(number)], env=bench.field.environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                assert upload.stdout is not None
                if upload.stdout.readline() != "ready\n":
                    raise Invalid(f"streams, {name}: {upload.communicate(timeout=30)[1][-300:]}")
                client = bench.start(bench.command(one, *arguments), core)
                _pause(1.0)
                said, complaint = upload.communicate("go\n", timeout=60)
            finally:
                upload.kill()
            delays[name].append(bench.finish(client, one, "capture-streams")["event"])
            if upload.returncode:
                raise Invalid(f"streams, {name}: {complaint[-300:]}")
            bench.raw.append({"scenario": "capture-upload", "contestant": name, **json.loads(said)})
    for one in proxies.values():
        bench.field.stop(one)
    _must_be_whole(bench, bench.field.folder / "capture-on")
    p99 = {name: median(run["p99"] for run in runs) / 1e3 for name, runs in delays.items()}
    p50 = {name: median(run["p50"] for run in runs) / 1e3 for name, runs in delays.items()}
    return [
        Figure(
            "32 streams beside capture, p99", "ms", p99["on"], "3.5 x relaying", p99["on"] <= 3.5 * p99["blind"],
            "relaying", p99["blind"],
        ),
        Figure("the same, p50", "ms", p50["on"], "", True, "relaying", p50["blind"]),
        Figure("the same, p99, beside linking alone", "ms", p99["on"], "", True, "linking", p99["off"]),
    ]  # fmt: skip


def _must_be_whole(bench: Bench, data: Path) -> None:
    """Everything was captured, or the figure means nothing."""
    env = bench.field.environment() | {"DBPROXY_DATA_DIR": str(data)}
    command = [sys.executable, "-m", "dbproxy", "log", "verify", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if done.returncode:
        raise Invalid(f"streams: {done.stdout[-300:]}{done.stderr[-300:]}")
    found = json.loads(done.stdout)
    sent = sum(run["sent"] for run in bench.raw if run["scenario"] == "capture-upload" and run["contestant"] == "on")
    if found["exact"] < sent:
        raise Invalid(f"streams: of {sent} bodies {found['exact']} were captured")


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "capture-size": size,
    "capture-turn": turn,
    "capture-link": link,
    "capture-search": search,
    "capture-many": many,
    "capture-streams": streams,
}
