"""The figures of the double buffer: a swap's time, ordinary answers beside a checkpoint, memory, a decision.

Measured by swapping.py in a process of its own. There is no peer: natively a summary takes from half a minute on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING, Any

from contestants import HERE
from scenarios import MB, Bench, Figure, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 120.0


def _alone(bench: Bench, what: str) -> dict[str, Any]:
    folder = bench.field.folder / "swapping"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "swapping.py"), what, str(folder)]
    done = subprocess.run(
        command, env=bench.field.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_PATIENCE, check=False,
    )  # fmt: skip
    shutil.rmtree(folder)
    if done.returncode:
        raise Invalid(f"{what}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    bench.raw.append({"scenario": f"buffer-{what}", **found})
    return found


def swap(bench: Bench) -> list[Figure]:
    """A compact request of 900 KB, its checkpoint ready."""
    runs = [_alone(bench, "swap") for _ in range(bench.rounds(5))]
    first, whole = median(run["first"] for run in runs), median(run["whole"] for run in runs)
    return [
        Figure("swap: request's last byte to answer's first", "ms", first, "10 ms", first <= 10),
        Figure("swap: to the answer's last byte", "ms", whole, "30 ms", whole <= 30),
    ]


def beside(bench: Bench) -> list[Figure]:
    """First bytes while a checkpoint runs against none running."""
    runs = [_alone(bench, "beside") for _ in range(bench.rounds(5))]
    figures = []
    for which, reach in (("p50", ""), ("p99", "1.1 x")):
        ours, peer = median(run["with"][which] for run in runs), median(run["without"][which] for run in runs)
        name = f"first byte beside a checkpoint, {which}"
        figures.append(Figure(name, "ms", ours, reach, not reach or ours <= 1.1 * peer, "none running", peer))
    return figures


def idle(bench: Bench) -> list[Figure]:
    """A thousand idle conversations."""
    taken = _alone(bench, "idle")["bytes"] / MB
    return [Figure("1,000 idle conversations with a checkpoint", "MB", taken, "20 MB", taken <= 20)]


def decision(bench: Bench) -> list[Figure]:
    """Wall, thresholds and phase for one answer."""
    taken = median(_alone(bench, "decide")["us"] for _ in range(bench.rounds(5)))
    return [Figure("decision for one answer", "us", taken, "50 us", taken <= 50)]


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "buffer-swap": swap,
    "buffer-beside": beside,
    "buffer-idle": idle,
    "buffer-decide": decision,
}
