"""The one table of settings: ``Settings``, and ``Table`` which is read from it.

Owns names, defaults, help and rules of every setting; command line, environment, TOML and documents come from here.
Imports ``dbproxy.config.values`` and ``tables`` only. Invariants: a setting exists once, as a field; every field is
documented; values that reach ``Settings`` through ``load`` were checked.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dbproxy.config import tables, values
from dbproxy.config.tables import Section
from dbproxy.config.values import Context, HostPort, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Scope = Literal["process", "launch"]
ProjectRule = Literal["allowed", "trusted-only"]
PREFIX = "DBPROXY_"

KNOWN_ENVIRONMENT = frozenset({"DBPROXY_ACTIVE", "DBPROXY_URL", "DBPROXY_PROXY_PORT"})
"""``DBPROXY_*`` variables that are no settings: what we set for children, and the port shorthand."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One setting. ``key`` is its dotted TOML name, ``env`` its variables, ``inherits`` variables of other programs
    that are read only when nothing of ours says anything (in order)."""

    name: str
    kind: Kind
    help: str
    default: object
    key: str
    env: tuple[str, ...]
    inherits: tuple[str, ...] = ()
    scope: Scope = "process"
    project: ProjectRule = "trusted-only"
    secret: bool = False

    @property
    def option(self) -> str:
        """The command-line option."""
        return "--" + self.key.replace("_", "-").replace(".", "-")


def setting(
    kind: Kind,
    default: Any = MISSING,
    *,
    help: str,
    key: str = "",
    env: tuple[str, ...] = (),
    inherits: tuple[str, ...] = (),
    scope: Scope = "process",
    project: ProjectRule = "trusted-only",
    secret: bool = False,
) -> Any:
    """A dataclass field that is a setting; ``env`` names aliases beside ``DBPROXY_<NAME>``."""
    rules = {"kind": kind, "help": help, "key": key, "env": env, "inherits": inherits}
    rules |= {"scope": scope, "project": project, "secret": secret}
    return field(default=default, metadata=rules, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its value. ``data_dir`` has no default here, because it depends on the user."""

    listen: tuple[HostPort, ...] = setting(
        values.many(values.host_port, "list of `HOST:PORT`, IPv6 in brackets", empty=False),
        (HostPort("127.0.0.1", 8080),),
        help="Where the proxy listens; one port speaks CONNECT, plain HTTP and TLS. Port 0 takes a free one. "
        "`DBPROXY_PROXY_PORT` changes only the port.",
    )
    dashboard_port: int | None = setting(
        values.integer(1, 65535),
        None,
        help="One more TLS listener at this port, for the web page and base-URL clients.",
    )
    data_dir: Path = setting(  # noqa: RUF009
        values.path(), help="Folder of certificates, logs, plugins, run files and the database; made private (0700)."
    )
    intercept: tuple[str, ...] = setting(
        values.many(values.host_name, "list of host names"),
        ("api.anthropic.com",),
        help="Hosts whose TLS is terminated here; any other is a blind tunnel.",
    )
    upstream_url: str = setting(
        values.url("https", "http"),
        "https://api.anthropic.com",
        help="Where requests for api.anthropic.com and base-URL requests go.",
    )
    upstream_ca: Path | None = setting(  # noqa: RUF009
        values.path(),
        None,
        help="A PEM file with further certificate authorities to trust upstream.",
        scope="launch",
    )
    parent_proxy: str | None = setting(
        values.proxy(),
        None,
        help="The proxy through which we reach the network. Unset: what HTTPS_PROXY or ALL_PROXY say.",
        inherits=("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
        scope="launch",
        secret=True,
    )
    no_proxy: tuple[str, ...] = setting(
        values.words("list of hosts, domains, addresses or `*`"),
        (),
        help="Hosts that we reach without the parent proxy. Unset: what NO_PROXY says.",
        inherits=("no_proxy", "NO_PROXY"),
        scope="launch",
    )
    passthrough: bool = setting(
        values.boolean(),
        False,
        help="Relay only: no policy acts, no extra upstream call is made, no header is added.",
        scope="launch",
    )
    buffer: str = setting(
        values.choice("on", "observe", "off"),
        "on",
        help="The double buffer: acting, only watching, or off.",
        scope="launch",
        project="allowed",
    )
    checkpoint_threshold: float = setting(
        values.fraction(),
        0.70,
        help="Part of the client's real compaction wall at which the background checkpoint is made.",
        scope="launch",
        project="allowed",
    )
    swap_threshold: float = setting(
        values.fraction(),
        0.80,
        help="Part of the client's real compaction wall from which a swap is ready; never below the checkpoint.",
        scope="launch",
        project="allowed",
    )
    early_swap: bool = setting(
        values.boolean(),
        False,
        help="Let the launcher set CLAUDE_CODE_AUTO_COMPACT_WINDOW, so that the client compacts at the swap threshold.",
        scope="launch",
    )
    compact_trigger_tokens: int = setting(
        values.integer(0, 100_000_000, "tokens"),
        50_000,
        help="Below this context size no checkpoint is made.",
        scope="launch",
        project="allowed",
    )
    buffer_log_tokens: int = setting(
        values.integer(1_000, 1_000_000, "tokens"),
        50_000,
        help="How many tokens of turns behind a checkpoint are kept whole; never more than a quarter of the window.",
        scope="launch",
    )
    buffer_hold_seconds: float = setting(
        values.seconds(0, 120),
        20.0,
        help="How long a compact request is held back for a checkpoint that is still being made.",
        scope="launch",
    )
    buffer_native_after_seconds: float = setting(
        values.seconds(0, 600),
        30.0,
        help="After this time of holding, the client's own compact request is sent as well; the first answer wins.",
        scope="launch",
    )
    buffer_adaptive: bool = setting(
        values.boolean(),
        False,
        help="Make the checkpoint earlier where the wall comes near faster than a summary is made.",
        scope="launch",
    )
    buffer_daily_tokens: int = setting(
        values.integer(0, 1 << 40, "tokens"),
        0,
        help="Tokens that checkpoints may use in a day (UTC), cache reads included. 0 sets no limit.",
    )
    conversation_ttl_seconds: int = setting(
        values.integer(1, 31_536_000, "seconds"),
        7200,
        help="A conversation that was silent for so long is forgotten (its record stays).",
    )
    routes: Section = setting(  # noqa: RUF009
        tables.routes(),
        Section(),
        help="Which model answers instead: by an agent's name, or by `agent:NAME`, `type:Explore`, `kind:compaction`, "
        "`model:PATTERN`. A model is `gpt-4o` or `PROVIDER:MODEL`, a list of them is tried in order, `claude` means "
        "that nothing changes; `{ to = ..., fallback = false }` forbids the way back to Claude.",
        env=("SUBAGENT_MAPPINGS",),
        scope="launch",
        project="allowed",
    )
    providers: Section = setting(  # noqa: RUF009
        tables.providers(),
        Section(),
        help="Who answers for routes, a table `[providers.NAME]` each. A key is named as `key_env` (a variable) or "
        "`key_file` (a file), never written here.",
    )
    labels: tuple[tuple[str, str], ...] = setting(
        values.labels(),
        (),
        help="Labels that every exchange of a launch carries in the record.",
        scope="launch",
        project="allowed",
    )
    capture: str = setting(
        values.choice("on", "facts", "off"),
        "on",
        help="What is kept of requests to the model API: everything, only the facts (no bodies, no text), or nothing.",
        scope="launch",
    )
    capture_stream: bool = setting(
        values.boolean(),
        False,
        help="Keep the raw events of each answer with their arrival times, too.",
        scope="launch",
    )
    redact_messages: bool = setting(
        values.boolean(),
        False,
        help="Take credentials out of captured messages, too; such bodies are no longer exact, and marked so. The "
        "search index and the headers are always redacted.",
        scope="launch",
    )
    retention_days: int = setting(
        values.integer(0, 36_500, "days"),
        0,
        help="Captured bodies that are older are removed; the facts stay. 0 keeps them.",
    )
    retention_bytes: int = setting(
        values.integer(0, 1 << 50, "bytes"),
        8 * 1024 * 1024 * 1024,
        help="When the database file is larger, the oldest captured bodies are removed. 0 sets no limit.",
    )
    prices: Path | None = setting(  # noqa: RUF009
        values.path(),
        None,
        help="A TOML or JSON file with prices that override or extend the built-in table.",
    )
    log_level: str = setting(
        values.choice("DEBUG", "INFO", "WARNING", "ERROR", upper=True),
        "INFO",
        help="The least important events that the journal keeps.",
    )
    log_days: int = setting(values.integer(1, 3650, "days"), 7, help="How long journal files are kept.")
    control_token: str | None = setting(
        values.secret(),
        None,
        help="Token for everything that reads content or changes state. Unset: a random one in `run/control-token`.",
        secret=True,
    )
    client_key: str | None = setting(
        values.secret(),
        None,
        help="A key for clients that no launch of ours started. One that sends it in the header `x-dbproxy-key` "
        "(ANTHROPIC_CUSTOM_HEADERS) is served with our provider keys, too. The header goes no further than here.",
        secret=True,
    )
    plugins_disabled: tuple[str, ...] = setting(
        values.words("list of plugin names"), (), key="plugins.disabled", help="Plugins that are not loaded."
    )
    connect_timeout: float = setting(
        values.seconds(0.1, 600), 10.0, help="Deadline for a connection to an upstream or a parent proxy."
    )
    handshake_timeout: float = setting(
        values.seconds(0.1, 600), 15.0, help="Deadline for a TLS handshake, on either side."
    )
    head_timeout: float = setting(
        values.seconds(0.1, 3600), 30.0, help="Deadline for a client's request head, from its first byte."
    )
    client_idle_timeout: float = setting(
        values.seconds(1, 86_400), 900.0, help="A client's connection with no request on it is closed after this time."
    )
    upstream_silence_timeout: float = setting(
        values.seconds(900, 86_400),
        1800.0,
        help="How long an upstream may stay silent while its client waits. Minutes of silence are normal, "
        "so it is never under 15 minutes.",
    )
    pool_idle_timeout: float = setting(
        values.seconds(1, 3600), 55.0, help="A kept upstream connection that was idle for so long is not used again."
    )
    pool_size: int = setting(values.integer(0, 10_000), 32, help="Idle upstream connections that are kept per host.")
    upstream_http2: bool = setting(
        values.boolean(),
        False,
        help="Speak HTTP/2 with upstreams that offer it. Off, because HTTP/1.1 is what is proven, and what keeps the "
        "spelling of header fields.",
    )
    drain_timeout: float = setting(
        values.seconds(0, 86_400), 600.0, help="How long a proxy that was told to stop lets running requests finish."
    )
    handshake_concurrency: int = setting(
        values.integer(1, 10_000),
        8,
        help="TLS handshakes at once; more of them wait, so that running streams are not delayed.",
    )
    max_connections: int = setting(
        values.integer(16, 1_000_000),
        4096,
        help="Client connections at once; further ones get status 529. Fewer where few files may be open.",
    )
    max_head_bytes: int = setting(
        values.integer(16_384, 16_777_216, "bytes"), 262_144, help="The largest request or response head."
    )
    max_head_fields: int = setting(
        values.integer(50, 100_000), 1000, help="The most fields in a request or response head."
    )
    max_held_body_bytes: int = setting(
        values.integer(65_536, 4_294_967_296, "bytes"),
        64 * 1024 * 1024,
        help="The largest body that is held for a policy; a larger one is streamed untouched.",
    )

    def launch_values(self) -> dict[str, object]:
        """The per-launch settings as JSON values, for a launch scope."""
        specs = (spec for spec in core_table().specs if spec.scope == "launch")
        found = ((spec, getattr(self, spec.name)) for spec in specs)
        return {spec.name: None if value is None else spec.kind.encode(value) for spec, value in found}

    def with_launch_values(self, given: Mapping[str, object]) -> Settings:
        """These settings with the per-launch values that ``given`` (from ``launch_values``) holds.

        Names that are unknown or process-wide are ignored, as another version may have written them; a value that
        cannot be read raises ValueError.
        """
        known = {spec.name: spec for spec in core_table().specs if spec.scope == "launch"}
        changes: dict[str, Any] = {}
        for name, raw in given.items():
            if name in known:
                changes[name] = None if raw is None else known[name].kind.parse(raw, Context())
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Table:
    """All settings that a run knows. Plugins add theirs with ``extended``."""

    specs: tuple[Spec, ...]

    def by_key(self) -> dict[str, Spec]:
        """The settings by their dotted TOML name."""
        return {spec.key: spec for spec in self.specs}

    def by_env(self) -> dict[str, Spec]:
        """The settings by each of their environment variables."""
        return {name: spec for spec in self.specs for name in spec.env}

    def extended(self, specs: Iterable[Spec]) -> Table:
        """This table with settings of plugins, made by ``plugin_setting``; those are checked from then on."""
        return Table(self.specs + tuple(specs))


def plugin_setting(
    plugin: str,
    name: str,
    kind: Kind,
    default: object,
    *,
    help: str,
    scope: Scope = "process",
    project: ProjectRule = "trusted-only",
    secret: bool = False,
) -> Spec:
    """A plugin's setting: ``plugins.PLUGIN.NAME`` in TOML, ``DBPROXY_PLUGIN_NAME`` in the environment."""
    variable = f"{PREFIX}{plugin}_{name}".upper().replace("-", "_")
    key = f"plugins.{plugin}.{name}"
    return Spec(key, kind, help, default, key, (variable,), (), scope, project, secret)


@cache
def core_table() -> Table:
    """The table of ``Settings``."""
    found = []
    for item in fields(Settings):
        rules: dict[str, Any] = dict(item.metadata)
        aliases = rules.pop("env")
        rules["key"] = rules["key"] or item.name
        default = None if item.default is MISSING else item.default
        found.append(Spec(name=item.name, default=default, env=(PREFIX + item.name.upper(), *aliases), **rules))
    return Table(tuple(found))
