"""``dbproxy doctor [--json]``: prints what ``dbproxy.proc.doctor`` finds. Owns the layout and the exit code."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from dbproxy.cli.common import current_folder, print_json

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="find and explain what would break",
        description="Look at everything that could keep Claude Code from working through dbproxy: settings, disk, "
        "port, certificates, the client and its settings files, the way to the API, plugins. Changes nothing. Exit "
        "code 1 if something would break.",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print every finding; 1 if one of them is a failure."""
    from dbproxy.proc.doctor import examine

    findings = []
    for finding in examine(args.overrides, os.environ, current_folder()):
        findings.append(finding)
        if args.json:
            continue
        print(f"{finding.level:<5} {finding.check}: {finding.what}", flush=True)
        if finding.level != "ok" and finding.why:
            print(f"      why: {finding.why}")
        if finding.advice and (finding.level != "ok" or finding.check == "background agents"):
            print(f"      do:  {finding.advice}")
    failed = [finding for finding in findings if finding.level == "fail"]
    if args.json:
        print_json({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]})
    return 1 if failed else 0
