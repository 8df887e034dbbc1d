"""``just bench``: speed and memory of dbproxy beside its peers, in one run.

Usage: ``python tests/bench/run.py [--quick] [--json FILE] [SCENARIO...]``. Prints one table, writes the figures and
every single run as JSON, and exits with 1 when a peer is missing or a run was invalid; a figure that was missed says so
in the table and is no failure. Loopback only; bounded in count and time; ends what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import buffering
import capture
import program
import routing
import scenarios
import tools
from contestants import Field, cpus
from scenarios import Bench, Figure, Invalid

ALL = program.ALL | scenarios.ALL | capture.ALL | buffering.ALL | routing.ALL


def machine() -> dict[str, Any]:
    """What the figures were measured on, without the machine's name."""
    model, memory = "", 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = round(int(line.split()[1]) / 1e6)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "pinned": cpus(),
        "memory_gb": memory,
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split(" ")[1],
    }


def table(figures: list[Figure]) -> str:
    """The figures as Markdown."""
    rows = [("figure", "ours", "peer", "ratio", "reach", "met?")]
    for one in figures:
        peer = f"{one.peer_name} {one.peer:.3g} {one.unit}" if one.peer is not None else ""
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}" if one.ratio >= 0.5 else f"1/{1 / one.ratio:.1f}"
        met = "" if not one.reach else "yes" if one.met else "MISSED"
        rows.append((one.name, f"{one.ours:.3g} {one.unit}", peer, ratio, one.reach, met))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute")
    parser.add_argument("--json", type=Path, default=tools.CACHE / "last.json", help="where the figures go")
    parser.add_argument("scenario", nargs="*", choices=[*ALL, []], help="all of them by default")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="dbproxy-bench-"))
    load_before = os.getloadavg()
    figures: list[Figure] = []
    field: Field | None = None
    try:
        tools.program("nginx")
        tools.program("haproxy")
        peers = {
            "mitmdump": tools.version([tools.mitmdump(), "--version"]),
            "nginx": tools.version([tools.program("nginx"), "-v"]),
            "haproxy": tools.version([tools.program("haproxy"), "-v"]),
        }
        field = Field(folder, tools.load_tool())
        field.start_server()
        bench = Bench(field, chosen.quick)
        for name in chosen.scenario or ALL:
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += ALL[name](bench)
    except tools.Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (Invalid, RuntimeError, subprocess.SubprocessError) as error:
        print(f"bench: invalid run: {error}", file=sys.stderr)
        return 1
    finally:
        if field is not None:
            field.close()
        shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "machine": machine(),
        "peers": peers,
        "load": {"before": load_before, "after": os.getloadavg()},
        "seconds": round(time.monotonic() - began, 1),
        "quick": chosen.quick,
    }
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    lines = [asdict(one) | {"ratio": one.ratio} for one in figures]
    chosen.json.write_text(json.dumps(facts | {"figures": lines, "runs": bench.raw}, indent=1) + "\n")
    print(table(figures))
    load = facts["load"]
    print(f"\nload average {load['before'][0]:.2f} before, {load['after'][0]:.2f} after; {facts['seconds']} s; {peers}")
    print(f"machine: {facts['machine']}\nfigures and runs: {chosen.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
