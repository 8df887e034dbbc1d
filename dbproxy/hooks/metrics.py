"""Metric samples and their Prometheus text form (exposition format 0.0.4).

Pure; imports nothing of dbproxy. Invariants: a bad sample of one plugin never spoils the page, and nothing that a
plugin gives can break out of its line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The type of what `render` returns.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric.

    Counters are named ``..._total`` and only grow; ``help`` and ``kind`` are taken from the first sample of a name.
    Keep the number of different label values small: each one is a series that lives as long as the process.
    """

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["counter", "gauge"] = "counter"
    help: str = ""

    def check(self) -> None:
        """Raise ValueError if the sample cannot be written."""
        if not _NAME.match(self.name):
            raise ValueError(f"metric name {self.name!r} is not a Prometheus name")
        if self.kind not in ("counter", "gauge"):
            raise ValueError(f"metric kind {self.kind!r} is neither counter nor gauge")
        for label in self.labels:
            if not _LABEL.match(label):
                raise ValueError(f"label {label!r} of {self.name} is not a Prometheus label")


def render(samples: Iterable[Sample]) -> str:
    """The text of ``/metrics``: samples grouped by name, in the order in which names first appear."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    lines: list[str] = []
    for name, group in groups.items():
        if group[0].help:
            lines.append(f"# HELP {name} {_escape_help(group[0].help)}")
        lines.append(f"# TYPE {name} {group[0].kind}")
        lines.extend(f"{name}{_labels(sample.labels)} {_number(sample.value)}" for sample in group)
    return "\n".join(lines) + "\n" if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape_label(str(value))}"' for key, value in labels.items()) + "}"


def _escape_label(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
