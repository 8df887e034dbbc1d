"""The figures of the double buffer: a swap's time, ordinary answers beside a checkpoint, memory, a decision.

Measured by swapping.py in a process of its own. There is no peer: natively a summary takes from half a minute on.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from scenarios import MB, Bench, Figure

if TYPE_CHECKING:
    from collections.abc import Callable


def swap(bench: Bench) -> list[Figure]:
    """A compact request of 900 KB, its checkpoint ready."""
    runs = [bench.alone("buffer", "swapping.py", "swap") for _ in range(bench.rounds(5))]
    first, whole = median(run["first"] for run in runs), median(run["whole"] for run in runs)
    return [
        Figure("swap: request's last byte to answer's first", "ms", first, "10 ms", first <= 10),
        Figure("swap: to the answer's last byte", "ms", whole, "30 ms", whole <= 30),
    ]


def beside(bench: Bench) -> list[Figure]:
    """First bytes while a checkpoint runs against none running."""
    runs = [bench.alone("buffer", "swapping.py", "beside") for _ in range(bench.rounds(5))]
    figures = []
    for which, reach in (("p50", ""), ("p99", "1.1 x")):
        ours, peer = median(run["with"][which] for run in runs), median(run["without"][which] for run in runs)
        name = f"first byte beside a checkpoint, {which}"
        figures.append(Figure(name, "ms", ours, reach, not reach or ours <= 1.1 * peer, "none running", peer))
    return figures


def idle(bench: Bench) -> list[Figure]:
    """A thousand idle conversations."""
    taken = bench.alone("buffer", "swapping.py", "idle")["bytes"] / MB
    return [Figure("1,000 idle conversations with a checkpoint", "MB", taken, "20 MB", taken <= 20)]


def decision(bench: Bench) -> list[Figure]:
    """Wall, thresholds and phase for one answer."""
    taken = median(bench.alone("buffer", "swapping.py", "decide")["us"] for _ in range(bench.rounds(5)))
    return [Figure("decision for one answer", "us", taken, "50 us", taken <= 50)]


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "buffer-swap": swap,
    "buffer-beside": beside,
    "buffer-idle": idle,
    "buffer-decide": decision,
}
