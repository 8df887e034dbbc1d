"""What an answer cost, by a dated price table; and how large a model's context window is.

Owns ``data/prices.json`` (made by packaging/prices.py) and the form of a user's own price file, which is the same form
as TOML or JSON. Does no I/O but reading that one file of the package, through the import system, once.

Invariants: a cost is computed from one request's usage, never from sums, because dates, tiers and modes differ from
request to request; what the table does not know has no price, never a guessed one; a table never changes once made, so
any thread may ask it.

The form: ``models`` maps a model's id to ``context`` (tokens), ``client_context`` (what the client reckons with unless
it asked for the long window), ``output`` (most tokens of an answer), ``aliases``, ``batch`` (factor of batch requests),
``geo`` (factor by place of inference) and ``prices``, a list of rows. A row holds USD per million tokens (``input``,
``output``, ``cache_read``, ``cache_write_5m``, ``cache_write_1h``) and per thousand searches (``web_search``); ``from``
(UTC date) and ``hours`` (UTC) say when it holds, the last one that does wins; ``fast`` holds the prices of fast mode;
``over`` lists prices for requests whose prompt has more than ``tokens`` tokens: they hold for the whole request. A
single row may stand in the model itself instead of ``prices``.
"""

from __future__ import annotations

import difflib
import math
import pkgutil
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dbproxy.model.usage import Usage


@dataclass(frozen=True, slots=True)
class Cost:
    """``usd`` is None when there is no price; ``row`` names the rows used, ``missing`` what was not found."""

    usd: float | None
    row: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per million tokens; None where the provider has no such price."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write_5m: float | None = None
    cache_write_1h: float | None = None

    def charge(self, usage: Usage) -> float | None:
        """USD for the tokens of ``usage`` alone (not its iterations); None if tokens have no price."""
        total = usage.input_tokens * self.input + usage.output_tokens * self.output
        for count, rate in (
            (usage.cache_read, self.cache_read),
            (usage.cache_write_5m, self.cache_write_5m),
            (usage.cache_write_1h, self.cache_write_1h),
        ):
            if count:
                if rate is None:
                    return None
                total += count * rate
        return total / 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """A model's prices: ``since`` in Unix seconds, ``hours`` as minutes of the UTC day, ``over`` ascending."""

    rates: Rates
    since: float = -math.inf
    label: str = ""
    hours: tuple[tuple[int, int], ...] = ()
    over: tuple[tuple[int, Rates], ...] = ()
    fast: Rates | None = None
    web_search: float | None = None

    def holds(self, at: float) -> bool:
        """Is it valid at this time?"""
        if at < self.since:
            return False
        minute = int(at % 86_400) // 60
        return not self.hours or any(
            start <= minute < end if start < end else minute >= start or minute < end for start, end in self.hours
        )


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the table. Windows in tokens, 0 where not known; no ``rows``: no price."""

    id: str
    context: int = 0
    client_context: int = 0
    output: int = 0
    batch: float | None = None
    geo: tuple[tuple[str, float], ...] = ()
    rows: tuple[Row, ...] = ()
    source: str = ""  # "user:" for prices of the user's own file

    def row(self, at: float) -> Row | None:
        """The row that holds at ``at`` (Unix seconds): the last one in the table's order."""
        return next((row for row in reversed(self.rows) if row.holds(at)), None)


class Prices:
    """The price table. ``Prices.load`` makes one."""

    def __init__(self, models: Mapping[str, Model], names: Mapping[str, str], as_of: str) -> None:
        self._models = dict(models)
        self._names = dict(names)  # every id and alias in lower case -> id
        self._memo: dict[str, Model | None] = {}
        self.as_of = as_of

    @classmethod
    def load(cls, user: bytes | None = None, name: str = "the price file") -> Prices:
        """The shipped table, with the user's file laid over it (TOML, or JSON when it begins with a brace).

        A model of the file replaces the prices of the shipped one and keeps what it does not mention. Raises
        ConfigError that calls the file ``name``.
        """
        shipped = _shipped()
        if user is None:
            return shipped
        return shipped._with(_read(user, name), name)

    def _with(self, document: dict[str, Any], name: str) -> Prices:
        models, names = dict(self._models), dict(self._names)
        for key, entry in _Reader(name).table(document, "models", "as_of", "unit").items():
            id = names.get(key.lower(), key.lower())
            reader = _Reader(f"{name}: model {key!r}")
            models[id] = reader.model(entry, replace(self._find(key) or Model(id), id=id))
            names[id.lower()] = id
            for alias in reader.words(entry, "aliases"):
                names[alias.lower()] = id
        return Prices(models, names, self.as_of)

    def resolve(self, model: str) -> str | None:
        """The table's id for a model as a request or an answer names it; None if the table does not have it."""
        found = self._find(model)
        return found.id if found else None

    def window(self, model: str, *, long: bool = False) -> int | None:
        """The context window in tokens that the client reckons with; None if unknown.

        ``long``: the request asked for the 1M window by its beta (an id that ends in ``[1m]`` says the same).
        """
        found = self._find(model)
        if found is None or not found.context:
            return None
        long = long or model.lower().endswith("[1m]")
        return found.client_context if found.client_context and not long else found.context

    def max_output(self, model: str) -> int | None:
        """The most tokens that an answer may have; None if unknown."""
        found = self._find(model)
        return found.output or None if found else None

    def cost(self, model: str, usage: Usage, at: float, *, batch: bool = False) -> Cost:
        """What an answer of ``model`` cost whose request began at ``at`` (Unix seconds).

        Each iteration is billed by its own model (API facts 1.5). A batch is known by ``batch`` or the usage's service
        tier; priority tokens are given at list price, since what was agreed for them is not known.
        """
        total, labels = 0.0, dict[str, None]()
        for part in usage.billed():
            part = replace(
                part,
                model=part.model or model,
                speed=part.speed or usage.speed,
                service_tier=part.service_tier or usage.service_tier,
                inference_geo=part.inference_geo or usage.inference_geo,
            )
            cost = self._tokens(part, at, batch)
            if cost.usd is None:
                return cost
            total += cost.usd
            labels[cost.row] = None
        searches = usage.web_search_requests or sum(part.web_search_requests for part in usage.iterations)
        if searches:
            found = self._find(model)
            row = found.row(at) if found else None
            if row is None or row.web_search is None:
                return Cost(None, missing=f"web searches of {model}")
            total += searches * row.web_search / 1000
        return Cost(total, " + ".join(labels))

    def _tokens(self, usage: Usage, at: float, batch: bool) -> Cost:
        """The tokens of one iteration, whose labels are all filled in."""
        found = self._find(usage.model)
        row = found.row(at) if found else None
        if found is None or row is None:
            return Cost(None, missing=f"model {usage.model or 'unnamed'}")
        rates, label = row.rates, [f"{found.source}{found.id}{row.label}"]
        if usage.speed == "fast":
            if row.fast is None:
                return Cost(None, missing=f"fast mode of {found.id}")
            rates = row.fast
            label.append("fast")
        elif usage.speed not in ("", "standard"):
            return Cost(None, missing=f"speed {usage.speed} of {found.id}")
        else:
            for tokens, dearer in row.over:
                if usage.prompt_tokens > tokens:
                    rates = dearer
                    label[1:] = [f"over-{tokens}"]
        charge = rates.charge(usage)
        if charge is None:
            return Cost(None, missing=f"cached tokens of {found.id}")
        if batch or usage.service_tier == "batch":
            if found.batch is None:
                return Cost(None, missing=f"batches of {found.id}")
            charge *= found.batch
            label.append("batch")
        elif usage.service_tier == "priority":
            label.append("priority")
        elif usage.service_tier not in ("", "standard"):
            return Cost(None, missing=f"service tier {usage.service_tier} of {found.id}")
        if found.geo and usage.inference_geo not in _ANYWHERE:
            factor = dict(found.geo).get(usage.inference_geo)
            if factor is None:
                return Cost(None, missing=f"inference in {usage.inference_geo} of {found.id}")
            charge *= factor
            label.append(usage.inference_geo)
        return Cost(charge, "/".join(label))

    def _find(self, model: str) -> Model | None:
        try:
            return self._memo[model]
        except KeyError:
            id = next((self._names[name] for name in _spellings(model) if name in self._names), None)
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            found = self._memo[model] = self._models[id] if id is not None else None
            return found


_MEMO: Final = 512
_ANYWHERE: Final = ("", "global", "not_available")
#: Gateways that hand a model on under its maker's name, at its maker's price.
_MAKER: Final = re.compile(
    r"(?:models|anthropic|openai|google|deepseek|x-ai|z-ai|moonshotai|minimax|mistralai)/|anthropic\."
)
#: A snapshot's date, Vertex's version and Bedrock's: the price is that of the model.
_SNAPSHOT: Final = re.compile(r"(?:[-@](?:\d{8}|\d{4}-\d\d-\d\d|latest|default))?(?:-v\d+(?::\d+)?)?\Z")
_DOT: Final = re.compile(r"(?<=\d)\.(?=\d)")


def _spellings(model: str) -> Iterator[str]:
    """The names under which the table may have a model, the exact one first. Never a shorter model's name."""
    name = model.strip().lower()[:200]
    yield name
    name = name.removesuffix("[1m]")
    yield name
    maker = _MAKER.match(name)
    if maker:
        name = name[maker.end() :]
        yield name
    found = _SNAPSHOT.search(name)
    if found and found.start() < len(name):
        name = name[: found.start()]
        yield name
    if name.startswith("claude"):
        yield _DOT.sub("-", name)


@cache
def _shipped() -> Prices:
    data = pkgutil.get_data("dbproxy.model", "data/prices.json")
    if data is None:
        raise ConfigError("the price table is missing from this installation", hint="Install dbproxy again")
    document = msgspec.json.decode(data)
    models, names = {}, {}
    for key, entry in document["models"].items():
        models[key] = replace(_Reader("the shipped price table").model(entry, Model(key)), source="")
        for name in (key, *entry.get("aliases", ())):
            names[name.lower()] = key
    return Prices(models, names, document["as_of"])


def _read(data: bytes, name: str) -> dict[str, Any]:
    """A user's file as a document. ConfigError."""
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            found = msgspec.json.decode(text)
        else:
            import tomllib

            found = tomllib.loads(text)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{name} cannot be read: {error}", hint="It is TOML or JSON; mend or remove it") from error
    return found if isinstance(found, dict) else {}


_RATES: Final = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_ROW: Final = (*_RATES, "web_search", "from", "hours", "over", "fast")
_MODEL: Final = ("provider", "context", "client_context", "output", "aliases", "batch", "geo", "prices")
_HINT: Final = "Prices are USD per million tokens, as in: input = 3, output = 15, cache_read = 0.3"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one model's entry; every error is a ConfigError that begins with ``where``."""

    where: str

    def fail(self, text: str, hint: str = _HINT) -> ConfigError:
        return ConfigError(f"{self.where}: {text}", hint=hint)

    def table(self, document: object, key: str, *others: str) -> dict[str, dict[str, Any]]:
        """The member ``key``, a table of tables."""
        given = self.members(document, (key, *others))
        found = given.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
            raise self.fail(f"{key!r} must be a table of models", hint='For example: [models."my-model"]')
        return found

    def members(self, value: object, known: tuple[str, ...]) -> dict[str, Any]:
        """A table that has no other members than ``known``."""
        if not isinstance(value, dict):
            raise self.fail("a table was expected")
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise self.fail(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        return value

    def number(self, value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.fail(f"{name} must be a number, zero or more, not {value!r}")
        return float(value)

    def tokens(self, entry: dict[str, Any], key: str, default: int) -> int:
        value = entry.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(f"{key} must be a whole number of tokens, not {value!r}")
        return value

    def words(self, entry: dict[str, Any], key: str) -> list[str]:
        value = entry.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.fail(f"{key} must be a list of names")
        return value

    def model(self, entry: dict[str, Any], base: Model) -> Model:
        """``base`` with what the entry says. A row in the entry itself: ``output`` is then its price."""
        single = "input" in entry
        self.members(entry, _MODEL + _ROW if single else _MODEL)
        rows, source = base.rows, base.source
        if single and "prices" in entry:
            raise self.fail("prices stand in the model itself or in 'prices', not in both")
        if single or "prices" in entry:
            given = [{key: entry[key] for key in _ROW if key in entry}] if single else entry["prices"]
            if not isinstance(given, list) or not given:
                raise self.fail("'prices' must be a list of rows")
            rows, source = tuple(self.row(row) for row in given), "user:"
        return replace(
            base,
            context=self.tokens(entry, "context", base.context),
            client_context=self.tokens(entry, "client_context", base.client_context),
            output=base.output if single else self.tokens(entry, "output", base.output),
            batch=self.number(entry["batch"], "batch") if "batch" in entry else base.batch,
            geo=self.geo(entry["geo"]) if "geo" in entry else base.geo,
            rows=rows,
            source=source,
        )

    def geo(self, value: object) -> tuple[tuple[str, float], ...]:
        if not isinstance(value, dict):
            raise self.fail("'geo' must be a table of factors", hint="For example: geo = { us = 1.1 }")
        return tuple((place, self.number(factor, f"geo.{place}")) for place, factor in value.items())

    def row(self, value: object) -> Row:
        given = self.members(value, _ROW)
        over = given.get("over", [])
        if not isinstance(over, list):
            raise self.fail("'over' must be a list of prices, each with 'tokens'")
        found = (
            (self.tokens(self.members(tier, ("tokens", *_RATES)), "tokens", -1), self.rates(tier)) for tier in over
        )
        tiers = sorted(found, key=lambda tier: tier[0])
        since = given.get("from")
        return Row(
            rates=self.rates(given),
            since=self.since(since) if since is not None else -math.inf,
            label=f"@{since}" if since is not None else "",
            hours=tuple(self.hours(text) for text in self.words(given, "hours")),
            over=tuple(tiers),
            fast=self.rates(self.members(given["fast"], _RATES)) if "fast" in given else None,
            web_search=self.number(given["web_search"], "web_search") if "web_search" in given else None,
        )

    def rates(self, given: dict[str, Any]) -> Rates:
        missing = [name for name in ("input", "output") if name not in given]
        if missing:
            raise self.fail(f"the price {missing[0]!r} is missing")
        return Rates(**{name: self.number(given[name], name) for name in _RATES if name in given})

    def since(self, value: object) -> float:
        try:
            day = value if isinstance(value, date) else date.fromisoformat(str(value))
        except ValueError:
            raise self.fail(f"'from' must be a date like 2026-10-07, not {value!r}") from None
        return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()

    def hours(self, text: str) -> tuple[int, int]:
        found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if found is None:
            raise self.fail(f"'hours' must be UTC times like \"01:00-04:00\", not {text!r}")
        start_hour, start, end_hour, end = map(int, found.groups())
        return start_hour * 60 + start, end_hour * 60 + end
