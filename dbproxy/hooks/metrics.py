"""Metric samples and their Prometheus text form (exposition format 0.0.4).

Pure; imports nothing of dbproxy. Invariants: a bad sample of one plugin never spoils the page, and nothing that a
plugin gives can break out of its line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        """Raise ValueError if the sample cannot be written. Types are looked at too: plugins need not be checked."""
        sample: Any = self
        if not (isinstance(sample.name, str) and _NAME.match(sample.name)):
            raise ValueError(f"metric name {sample.name!r} is not a Prometheus name")
        if not isinstance(sample.value, int | float):
            raise ValueError(f"the value of {sample.name} is no number")
        if sample.kind not in ("counter", "gauge"):
            raise ValueError(f"metric kind {sample.kind!r} is neither counter nor gauge")
        if not (isinstance(sample.help, str) and isinstance(sample.labels, Mapping)):
            raise ValueError(f"help or labels of {sample.name} have the wrong type")
        for label, value in sample.labels.items():
            if not (isinstance(label, str) and _LABEL.match(label) and isinstance(value, str)):
                raise ValueError(f"label {label!r} of {sample.name} is not a Prometheus label with a text value")


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
    return "{" + ",".join(f'{key}="{_escape_label(value)}"' for key, value in labels.items()) + "}"


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
