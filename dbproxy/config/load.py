"""From command line, environment and files to ``Config``: what holds, and where each value came from.

Imports ``dbproxy.errors``, ``dbproxy.paths`` and its own package.
Invariants: command line > environment > project file > user file > default; every problem of a run is collected before
any is raised; what a project file may not set is refused, said and without effect, and never stops a launch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dbproxy.config.files import (
    PROJECT_FILE,
    digest_of,
    find_project_file,
    parse_toml,
    read_file,
    read_trusted,
    write_trusted,
)
from dbproxy.config.settings import KNOWN_ENVIRONMENT, PREFIX, Settings, Spec, Table, core_table
from dbproxy.config.values import Context, HostPort
from dbproxy.errors import ConfigError
from dbproxy.paths import default_data_dir, home, trust_file, user_config_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dbproxy.config.tables import Section

TOLD = ("command-line", "environment")
"""Sources that hold for as long as a process; files are another matter."""


class SettingsError(ConfigError):
    """Settings that cannot be used. ``problems`` holds one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from. ``source`` is command-line, environment, project, user or default; ``where`` the option,
    variable or file."""

    source: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.source} ({self.where})" if self.where else self.source


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source said of a setting to which several add (`Kind.adds_up`)."""

    origin: Origin
    value: Section


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in a project file that has no effect, and why."""

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.key else self.reason


@dataclass(frozen=True, slots=True)
class Project:
    """The project file of a run. ``digest`` is that of the content that was read."""

    file: Path
    digest: str
    trusted: bool
    refused: tuple[Refusal, ...] = ()

    @property
    def notice(self) -> str:
        """One line for a person about what was refused; empty if nothing was."""
        if not self.refused:
            return ""
        what = ", ".join(refusal.key or refusal.reason for refusal in self.refused)
        return f"{self.file}: ignored {what}; if you wrote this file: dbproxy config trust {self.file.parent}"


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a run, their origins, and the sections of plugins.

    ``problems`` is empty unless ``load`` was asked not to be strict; what has a problem then counts as not given.
    ``layers`` holds, strongest first, what each source said of the settings to which several add.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    user_file: Path
    project: Project | None = None
    plugins: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    table: Table = field(default_factory=core_table)
    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)

    def origin(self, name: str) -> Origin:
        """Where the setting ``name`` got its value. Raises KeyError for a name that does not exist."""
        return self.origins[name]

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """What the project file may not set."""
        return self.project.refused if self.project else ()

    def said(self, name: str, *sources: str) -> Section | None:
        """What these sources together said of a setting to which several add; None if none of them said anything."""
        found: Section | None = None
        for layer in reversed(self.layers.get(name, ())):
            if layer.origin.source in sources:
                found = layer.value if found is None else layer.value.over(found)
        return found

    def entries(self, name: str) -> list[tuple[str, object, Origin]]:
        """The entries of a setting to which several add, each with the source that it is from."""
        found: list[tuple[str, object, Origin]] = []
        for layer in self.layers.get(name, ()):
            known = {entry.lower() for entry, _value, _origin in found}
            found += [(entry, value, layer.origin) for entry, value in layer.value.pairs if entry.lower() not in known]
        return found

    def launch_values(self) -> dict[str, object]:
        """What a launch scope keeps: the per-launch settings as JSON values.

        Of those that add up only what this launch was told: what stands in files is followed while it runs.
        """
        values = self.settings.launch_values()
        for name in self._followed():
            told = self.said(name, *TOLD)
            del values[name]
            if told is not None:
                values[name] = told.plain()
        return values

    def project_values(self) -> dict[str, object]:
        """What the project file says of the per-launch settings that are followed, as JSON values."""
        found = {name: self.said(name, "project") for name in self._followed()}
        return {name: value.plain() for name, value in found.items() if value is not None}

    def _followed(self) -> list[str]:
        return [spec.name for spec in core_table().specs if spec.kind.adds_up and spec.scope == "launch"]

    def plugin(self, name: str) -> Mapping[str, object]:
        """The section ``[plugins.NAME]``: declared settings with their values, others as they stand in the file."""
        return self.plugins.get(name, MappingProxyType({}))

    def value(self, spec: Spec) -> object:
        """The value of any setting of the table."""
        if hasattr(self.settings, spec.name):
            return getattr(self.settings, spec.name)
        _plugins, section, name = spec.key.split(".", 2)
        return self.plugin(section)[name]


def load(
    cli: Mapping[str, object],
    env: Mapping[str, str],
    cwd: Path | None,
    *,
    table: Table | None = None,
    strict: bool = True,
) -> Config:
    """Read every source and return what holds.

    ``cli`` maps setting names to text (or a list of texts, or a truth value); None there means not given. ``cwd`` is
    where the search for a project file starts; None means no project file (as for the background proxy). Raises
    SettingsError with all problems, unless ``strict`` is false.
    """
    reading = _Reading(table or core_table(), env)
    user_file = user_config_file(env)
    reading.user(user_file)
    project = reading.project(cwd) if cwd is not None else None
    reading.environment(cwd)
    reading.command_line(cli, cwd)
    reading.proxy_port(cli)
    config = reading.finish(user_file, project)
    if strict and config.problems:
        raise SettingsError(config.problems)
    return config


def trust_project(directory: Path, env: Mapping[str, str]) -> Project:
    """Remember that the project file in ``directory``, as it is now, may set everything. Raises ConfigError."""
    file = directory.resolve() / PROJECT_FILE
    try:
        content = read_file(file)
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror or error}", hint="Name a folder that holds one"
        ) from error
    parse_toml(file, content)
    record = trust_file(env)
    known = read_trusted(record)
    digest = digest_of(content)
    known[str(file)] = digest
    write_trusted(record, known)
    return Project(file, digest, trusted=True)


def forget_project(directory: Path, env: Mapping[str, str]) -> bool:
    """Take the trust in the project file of ``directory`` back; False if there was none. Raises ConfigError."""
    record = trust_file(env)
    known = read_trusted(record)
    if known.pop(str(directory.resolve() / PROJECT_FILE), None) is None:
        return False
    write_trusted(record, known)
    return True


def problems_of_user_file(file: Path, content: bytes, env: Mapping[str, str]) -> list[str]:
    """What would be wrong if ``content`` were the user's file and nothing else said anything."""
    reading = _Reading(core_table(), env)
    reading.user_content(file, content)
    reading.check_together(None)
    return reading.problems


def user_says(file: Path, env: Mapping[str, str]) -> tuple[dict[str, Section], str]:
    """What the user's file says now of the settings that add up, and what is wrong with the file ("" for nothing)."""
    reading = _Reading(core_table(), env)
    reading.user(file)
    return reading.sections_of("user"), "; ".join(reading.problems[:3])


def project_says(cwd: Path, env: Mapping[str, str]) -> tuple[dict[str, Section], str]:
    """The same of the project file that counts in ``cwd``, as far as it is trusted: only they can be wrong there."""
    reading = _Reading(core_table(), env)
    reading.project(cwd)
    wrong = [problem for name, problem in reading.failed.items() if name in reading.adding_up]
    return reading.sections_of("project"), reading.broken or "; ".join(wrong)


def suggestion(name: str, known: Iterable[str], common: str = "") -> str:
    """The end of an error about an unknown name: the nearest known one, or nothing. ``common`` begins all of them."""
    import difflib  # here, as others below: every launch pays for what stands on top

    # Of a dotted name only the last part is compared, with its neighbours: a common beginning is no likeness.
    folder, dot, _last = name.rpartition(".")
    start = common or folder + dot
    rests = [item[len(start) :] for item in known if item.startswith(start)]
    near = difflib.get_close_matches(name[len(start) :], rests, n=1, cutoff=0.6)
    return f"; did you mean {start}{near[0]}?" if near else ""


class _Reading:
    """The state of one ``load``. Sources are applied from the weakest to the strongest."""

    def __init__(self, table: Table, env: Mapping[str, str]) -> None:
        self.table = table
        self.env = env
        self.home = home(env)
        self.problems: list[str] = []
        self.values: dict[str, object] = {spec.name: spec.default for spec in table.specs}
        self.values["data_dir"] = default_data_dir(env)
        self.origins = {spec.name: Origin("default") for spec in table.specs}
        self.keys = {spec.name: spec.key for spec in table.specs}
        self.sections: dict[str, dict[str, object]] = {}
        self.refused: list[Refusal] = []
        self.layers: dict[str, tuple[Layer, ...]] = {}
        self.failed: dict[str, str] = {}
        self.broken = ""
        self.before_project = dict(self.values), dict(self.origins)

    @property
    def adding_up(self) -> list[str]:
        return [spec.name for spec in self.table.specs if spec.kind.adds_up]

    def sections_of(self, source: str) -> dict[str, Section]:
        found = ((name, layer) for name, layers in self.layers.items() for layer in layers)
        return {name: layer.value for name, layer in found if layer.origin.source == source}

    def context(self, base: Path | None) -> Context:
        return Context(base, self.env, self.home)

    def apply(self, spec: Spec, raw: object, origin: Origin, base: Path | None, problems: list[str]) -> None:
        try:
            value = spec.kind.parse(raw, self.context(base))
        except ValueError as error:
            label = f"{origin.where}: {spec.key}" if origin.source in ("user", "project") else origin.where
            problems.append(f"{label}: {error}")
            self.failed[spec.name] = problems[-1]
            return
        if spec.kind.adds_up:
            layers = self.layers.get(spec.name, ())
            self.layers[spec.name] = (Layer(origin, value), *layers)
            value = value.over(self.values[spec.name])
        self.values[spec.name] = value
        self.origins[spec.name] = origin

    def user(self, file: Path) -> None:
        try:
            content = read_file(file)
        except FileNotFoundError:
            return
        except OSError as error:
            self.problems.append(f"{file}: cannot be read: {error.strerror or error}")
            return
        self.user_content(file, content)

    def user_content(self, file: Path, content: bytes) -> None:
        try:
            tree = parse_toml(file, content)
        except ConfigError as error:
            self.problems.append(str(error))
            return
        origin = Origin("user", str(file))
        for key, raw in self.flat(tree):
            spec = self.table.by_key().get(key)
            if spec is None:
                self.unknown_key(key, raw, origin, self.problems)
            else:
                self.apply(spec, raw, origin, file.parent, self.problems)

    def project(self, cwd: Path) -> Project | None:
        file = find_project_file(cwd, self.home)
        if file is None:
            return None
        file = file.parent.resolve() / file.name
        self.before_project = dict(self.values), dict(self.origins)
        refused = self.refused
        try:
            content = read_file(file)
        except OSError as error:
            self.broken = f"{file}: cannot be read: {error.strerror or error}"
            refused.append(Refusal("", self.broken.removeprefix(f"{file}: ")))
            return Project(file, "", False)
        digest = digest_of(content)
        trusted = read_trusted(trust_file(self.env)).get(str(file)) == digest
        problems: list[str] = []
        try:
            tree = parse_toml(file, content)
        except ConfigError as error:
            self.broken = str(error)
            refused.append(Refusal("", self.broken.removeprefix(f"{file}: ")))
            return Project(file, digest, False)
        origin = Origin("project", str(file))
        for key, raw in self.flat(tree):
            spec = self.table.by_key().get(key)
            if not trusted and (key.startswith("plugins.") if spec is None else spec.project != "allowed"):
                refused.append(Refusal(key, "a project file may not set this unless you trust it"))
            elif not trusted and spec is None:
                refused.append(Refusal(key, "unknown setting" + suggestion(key, self.table.by_key())))
            elif spec is None:
                self.unknown_key(key, raw, origin, problems)
            else:
                if not trusted:
                    raw = self.tame(spec, raw, file.parent)
                self.apply(spec, raw, origin, file.parent, problems)
        if trusted:
            self.problems += problems
        else:
            refused += [Refusal("", problem.removeprefix(f"{file}: ")) for problem in problems]
        return Project(file, digest, trusted)

    def tame(self, spec: Spec, raw: object, base: Path) -> object:
        """The part of a value that a project file may say without trust; the rest is refused, entry by entry."""
        if spec.kind.tamed is None:
            return raw
        try:
            kept, refused = spec.kind.tamed(spec.kind.parse(raw, self.context(base)))
        except ValueError:
            return raw  # said when it is applied
        self.refused += [Refusal(f"{spec.key}.{entry}", reason) for entry, reason in refused]
        return kept

    def environment(self, cwd: Path | None) -> None:
        by_env = self.table.by_env()
        for spec in self.table.specs:
            # The first of its names wins; an empty variable is an unset one.
            for name in spec.env:
                if self.env.get(name, "").strip():
                    self.apply(spec, self.env[name], Origin("environment", name), cwd, self.problems)
                    break
            else:
                self.inherit(spec)
        for name in self.env:
            if name.startswith(PREFIX) and name not in by_env and name not in KNOWN_ENVIRONMENT:
                known = {*by_env, *KNOWN_ENVIRONMENT}
                near = suggestion(name, known, PREFIX)
                self.problems.append(f"{name}: unknown setting in the environment{near}")

    def inherit(self, spec: Spec) -> None:
        """Take a value from another program's variable where nobody said anything to us."""
        if self.origins[spec.name].source != "default":
            return
        for name in spec.inherits:
            raw = self.env.get(name, "").strip()
            # Inside one of our own launches HTTPS_PROXY is ourselves, and as a parent it would be a loop.
            if raw and not _is_ours(raw, self.env):
                try:
                    self.values[spec.name] = spec.kind.parse(raw, self.context(None))
                except ValueError:
                    continue  # not addressed to us, so it is not ours to complain about
                self.origins[spec.name] = Origin("environment", name)
                return

    def command_line(self, cli: Mapping[str, object], cwd: Path | None) -> None:
        by_name = {spec.name: spec for spec in self.table.specs}
        for name, raw in cli.items():
            if raw is None:
                continue
            spec = by_name.get(name)
            if spec is None:
                self.problems.append(f"{name}: unknown setting" + suggestion(name, by_name))
            else:
                self.apply(spec, raw, Origin("command-line", spec.option), cwd, self.problems)

    def proxy_port(self, cli: Mapping[str, object]) -> None:
        """DBPROXY_PROXY_PORT replaces the port of the address, unless the command line names one."""
        text = self.env.get("DBPROXY_PROXY_PORT", "").strip()
        if not text or cli.get("listen") is not None:
            return
        if not (text.isascii() and text.isdigit() and int(text) <= 65535):
            self.problems.append("DBPROXY_PROXY_PORT: expected a port from 0 to 65535")
            return
        listen: Any = self.values["listen"]
        first = listen[0].port
        self.values["listen"] = tuple(HostPort(item.host, int(text)) if item.port == first else item for item in listen)
        self.origins["listen"] = Origin("environment", "DBPROXY_PROXY_PORT")

    def flat(self, tree: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
        """The tree as dotted keys. A table that is one setting's value (labels) stays whole."""
        known = self.table.by_key()
        todo = [(key, value) for key, value in tree.items()]
        while todo:
            key, value = todo.pop(0)
            inside = any(name.startswith(f"{key}.") for name in known) or key == "plugins"
            if isinstance(value, dict) and key not in known and inside:
                todo = [(f"{key}.{name}", item) for name, item in value.items()] + todo
            else:
                yield key, value

    def unknown_key(self, key: str, raw: object, origin: Origin, problems: list[str]) -> None:
        parts = key.split(".", 2)
        if parts[0] == "plugins" and len(parts) == 2 and isinstance(raw, dict):
            self.sections.setdefault(parts[1], {}).update(raw)
            return
        problems.append(f"{origin.where}: unknown setting {key}" + suggestion(key, self.table.by_key()))

    def finish(self, user_file: Path, project: Project | None) -> Config:
        self.check_together(project)
        if project is not None:
            project = replace(project, refused=tuple(self.refused))
        core = {spec.name for spec in core_table().specs}
        settings = Settings(**{name: value for name, value in self.values.items() if name in core})  # type: ignore[arg-type]
        for spec in self.table.specs:
            if spec.name not in core:
                _plugins, section, name = spec.key.split(".", 2)
                self.sections.setdefault(section, {})[name] = self.values[spec.name]
        plugins = {name: MappingProxyType(section) for name, section in self.sections.items()}
        return Config(
            settings,
            MappingProxyType(self.origins),
            user_file,
            project,
            MappingProxyType(plugins),
            tuple(dict.fromkeys(self.problems)),
            self.table,
            MappingProxyType(self.layers),
        )

    def check_together(self, project: Project | None) -> None:
        """Rules over more than one setting. What an untrusted project file set against one is taken back."""
        for names, problem in self.contradictions():
            mine = [name for name in names if self.origins[name].source == "project"]
            if mine and project is not None and not project.trusted:
                self.refused += [Refusal(self.keys[name], problem) for name in mine]
                values, origins = self.before_project
                for name in mine:
                    self.values[name], self.origins[name] = values[name], origins[name]
            else:
                self.problems.append(problem)

    def contradictions(self) -> Iterable[tuple[tuple[str, ...], str]]:
        values: Any = self.values
        if values["checkpoint_threshold"] > values["swap_threshold"]:
            names = ("checkpoint_threshold", "swap_threshold")
            first, second = (f"{name} ({values[name]:g}, {self.origins[name]})" for name in names)
            yield names, f"{first} is above {second}; the checkpoint must come first"
        port = values["dashboard_port"]
        if port is not None and any(item.port == port for item in values["listen"]):
            yield ("dashboard_port", "listen"), f"dashboard_port ({port}) is a port of listen already; choose another"


def _is_ours(raw: str, env: Mapping[str, str]) -> bool:
    """Whether a proxy URL is the one that our launcher gave to this environment."""
    own = env.get("DBPROXY_URL", "")
    if not own:
        return False
    from urllib.parse import urlsplit

    try:
        mine, theirs = urlsplit(own), urlsplit(raw)
        return (mine.hostname, mine.port) == (theirs.hostname, theirs.port)
    except ValueError:
        return False


def with_settings(config: Config, **changes: Any) -> Config:
    """``config`` with some settings replaced, for tests and embedding."""
    return replace(config, settings=replace(config.settings, **changes))
