"""Makes dbproxy/model/data/prices.json from two price lists: `prices.py MODELS.json EXPORT.json`.

MODELS.json is ours: context windows and prices of the models that matter most, each checked against its provider's
page. EXPORT.json is an export of the package genai-prices (MIT): everything else, and older or dated prices. What we
know better stands below, with its source. The form of the result is described in dbproxy/model/prices.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent.parent / "dbproxy" / "model" / "data" / "prices.json"
NAMES = {"in": "input", "out": "output", "web_search_1k": "web_search"}
RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
WEB_SEARCH = 10  # USD per 1000, every Claude model (pricing page)
# Billed by other units than text tokens, or long gone.
LEFT_OUT = re.compile(
    r"claude-(v1|2)|tts|audio|image|realtime|live|transcribe|whisper|embed|moderation|^ft:|\.ft-|search|davinci|^ada$"
    r"|babbage|curie|omni|banana|robotics|vision|pixtral|voxtral|voice|ocr|extended|-api$|^gpt-(3|4$|4-)|gemini-(1|pro"
    r"|flash-1)|mixtral|mistral-(7b|tiny)|gemma|4\.\dV"
)
# Fast mode's input price over the standard one; cache prices keep their ratio to input (pricing page, "Fast mode").
FAST = {
    "claude-fable-5-2": 2,
    "claude-opus-5-5": 2,
    "claude-opus-5": 2,
    "claude-opus-4-8": 2,
    "claude-opus-4-7": 6,
    "claude-opus-4-6": 6,
}
# Inference in the US alone costs 1.1 x on Claude 4.6 and later (pricing page, "Data residency").
NO_GEO = {"claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5"}
# What Claude Code takes for the window unless the 1M one is asked for (client facts 4.2).
CLIENT_CONTEXT = {"claude-sonnet-4-6": 200_000}
ALIASES = {
    "claude-3-5-haiku-latest": "claude-3-5-haiku",
    "claude-3-7-sonnet-latest": "claude-3-7-sonnet",
    "claude-3-opus-latest": "claude-3-opus",
}
HOURS = re.compile(r"(start|end)_time=datetime\.time\((\d+), (\d+), tzinfo=datetime\.timezone\.utc\)")


def main() -> None:
    ours, export = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    models: dict[str, dict[str, Any]] = {}
    for provider, entries in export["providers"].items():
        for entry in entries:
            foreign = provider != "anthropic" and entry["id"].startswith("claude")
            if not foreign and not LEFT_OUT.search(entry["id"]) and {"in", "out"} <= set(entry["prices"][0]):
                models[ALIASES.get(entry["id"], entry["id"])] = from_export(provider, entry)
    for provider in ("anthropic", "openai", "google"):
        for name, entry in ours[provider].items():
            if provider == "anthropic":
                models[name] = from_ours(name, entry, models.get(name, {}))
            else:
                models.setdefault(name, from_ours_elsewhere(provider, entry))["context"] = entry["context"]
    for entry in models.values():
        if entry["provider"] == "anthropic":
            entry["batch"] = 0.5
    write(models, ours["_meta"]["as_of"])


def from_export(provider: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One model of the export."""
    found: dict[str, Any] = {"provider": provider}
    if entry.get("ctx"):
        found["context"] = entry["ctx"]
    rules = entry["match"].get("or", [entry["match"]])
    aliases = sorted({rule["equals"] for rule in rules if "equals" in rule} - {entry["id"]})
    if aliases:
        found["aliases"] = aliases
    rows: list[dict[str, Any]] = []
    for row in entry["prices"]:
        hours = row.get("when") and hours_of(row["when"])
        made = {**({"from": row["from"]} if "from" in row else {}), **rates_of(row)}
        if hours and rows and "hours" in rows[-1]:
            rows[-1]["hours"] += hours
            continue
        if hours:
            made = {**({"from": rows[-1]["from"]} if "from" in rows[-1] else {}), "hours": hours, **made}
        rows.append(made)
    return {**found, "prices": rows}


def hours_of(text: str) -> list[str]:
    """A time of the day in UTC, ``HH:MM-HH:MM``."""
    times = {which: f"{int(hour):02}:{int(minute):02}" for which, hour, minute in HOURS.findall(text)}
    return [f"{times['start']}-{times['end']}"]


def rates_of(row: dict[str, Any]) -> dict[str, Any]:
    """The base prices of an exported row, and those above a prompt's size."""
    base: dict[str, Any] = {}
    over: dict[int, dict[str, Any]] = {}
    for key, value in row.items():
        if key in ("from", "when"):
            continue
        name = NAMES.get(key, key)
        base[name] = value["base"] if isinstance(value, dict) else value
        for tier in value["tiers"] if isinstance(value, dict) else ():
            over.setdefault(tier["above_input_tokens"], {})[name] = tier["price"]
    tiers = [{"tokens": tokens, **{k: base[k] for k in base if k in RATES}, **over[tokens]} for tokens in sorted(over)]
    return {**base, **({"over": tiers} if tiers else {})}


def from_ours(name: str, entry: dict[str, Any], exported: dict[str, Any]) -> dict[str, Any]:
    """One Claude model: our prices from their date on, the export's dated ones before."""
    rates = {key: entry[key] for key in RATES} | {"web_search": WEB_SEARCH}
    if "tier" in entry:
        tier = entry["tier"]
        rates["over"] = [{"tokens": tier["prompt_over"], **{key: tier[key] for key in RATES}}]
    if name in FAST:
        rates["fast"] = {key: plain(entry[key] * FAST[name]) for key in RATES}
        if "fast" in entry and {**rates["fast"], **entry["fast"]} != rates["fast"]:
            raise SystemExit(f"{name}: fast mode's prices contradict its factor")
    rows = [rates]
    if "cache_read_before_2026_10_07" in entry:
        rows = [{**rates, "cache_read": entry["cache_read_before_2026_10_07"]}, {"from": "2026-10-07", **rates}]
    elif len(exported.get("prices", ())) > 1:
        rows = [*exported["prices"][:-1], {"from": exported["prices"][-1]["from"], **rates}]
    elif "over" in exported.get("prices", [{}])[0] and name == "claude-sonnet-4-5":
        rows = [{**rates, "over": exported["prices"][0]["over"]}]  # with the 1M beta of its time
    found: dict[str, Any] = {"provider": "anthropic", "context": entry["context"], "output": entry["max_output"]}
    if name in CLIENT_CONTEXT:
        found["client_context"] = CLIENT_CONTEXT[name]
    if exported.get("aliases"):
        found["aliases"] = exported["aliases"]
    if name not in NO_GEO:
        found["geo"] = {"us": 1.1}
    return {**found, "prices": rows}


def from_ours_elsewhere(provider: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One model of another provider that the export lacks."""
    return {"provider": provider, "prices": [{key: entry[key] for key in RATES if key in entry}]}


def plain(value: float) -> float:
    """Without the noise of a multiplication."""
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded


def write(models: dict[str, dict[str, Any]], as_of: str) -> None:
    """One line a model, so that a change of prices reads well."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(models.items())]
    head = {"as_of": as_of, "unit": "USD per million tokens; web_search per 1000 searches"}
    text = json.dumps(head)[:-1] + ', "models": {\n' + ",\n".join(lines) + "\n}}\n"
    json.loads(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
