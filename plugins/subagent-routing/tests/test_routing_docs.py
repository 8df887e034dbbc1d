"""The page on routing names every event, kind and metric, and its rules are rules."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from dbproxy_subagent_routing import rules
from dbproxy_subagent_routing.rules import KINDS, read_rules

from dbproxy.api.codecs import parse_target

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "routing.md").read_text("utf-8")
README = (ROOT / "plugins" / "subagent-routing" / "README.md").read_text("utf-8")
SOURCES = "".join(path.read_text("utf-8") for path in sorted(Path(rules.__file__).parent.glob("*.py")))
SERVERS = ("openai", "gemini", "anthropic", "ollama")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE + README, re.DOTALL)


def test_every_event_is_named():
    names = set(re.findall(r'_?emit\(\s*"([a-z_]+)"', SOURCES))
    assert names == {"route_decided", "route_refused", "route_not_kept"}
    assert {name for name in names if f"`{name}`" not in PAGE} == {"route_not_kept"}


def test_every_kind_is_named():
    assert {kind for kind in KINDS if f"`kind:{kind}`" not in PAGE} == set()


def test_every_metric_is_named():
    names = set(re.findall(r'Sample\("([a-z_]+)"', SOURCES))
    assert names
    assert {name for name in names if f"`{name}`" not in PAGE} == set()


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_rules(example):
    found = read_rules(tomllib.loads(example)["routes"])
    assert found
    assert [rule.problem for rule in found] == [""] * len(found)
    for rule in found:
        assert rule.stays or all(parse_target(target, SERVERS)[0] in SERVERS for target in rule.targets)


def test_the_order_of_the_evidence_is_told():
    told = [
        PAGE.index(word)
        for word in ("own name, then a pattern", "then the agent's file", "then\nits type", "then the kind")
    ]
    assert told == sorted(told)
    assert [step.name for step in rules.Step] == ["AGENT", "FILE", "TYPE", "KIND", "MODEL"]
