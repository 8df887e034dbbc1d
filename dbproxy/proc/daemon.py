"""The background proxy of this user: find it, start it, replace an older one, stop it.

Owns every decision around ``run/daemon.json``; the mechanics are in ``child`` and ``dbproxy.state``. Must never import
trio or cryptography: the launcher stands on this path. Invariants: decisions to start or stop are made under the start
lock; a daemon is only believed when it answers for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dbproxy import __version__
from dbproxy.config import TOLD, core_table
from dbproxy.config import load as load_settings
from dbproxy.errors import LaunchError
from dbproxy.paths import Paths, make_private
from dbproxy.proc import child, handover
from dbproxy.proc.env import daemon_environment
from dbproxy.proc.listen import same_addresses
from dbproxy.state import DaemonState, http_get, is_alive, load, probe, split_address, start_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbproxy.config import Config, HostPort
    from dbproxy.proc.firstborn import Here

START_TIMEOUT = 15.0
"""Seconds that a start may take before the agent is launched without us."""
PROBE_TIMEOUT = 2.0
"""Seconds for a health answer over loopback; a busy daemon answers in milliseconds."""
HUNG_TIMEOUT = 5.0
"""Seconds after which a daemon that holds its port but does not answer counts as hung."""
CLOSE_TIMEOUT = 5.0
"""Seconds within which a daemon that was told to end must have closed its listening socket."""


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that answers. ``started`` is True if this call started it; ``notices`` are lines for the person."""

    state: DaemonState
    started: bool = False
    notices: tuple[str, ...] = ()


class Stopped(Enum):
    """How a stop ended. DRAINING: no longer listening, but answers that run are finished first."""

    NOT_RUNNING = "not running"
    STOPPED = "stopped"
    DRAINING = "draining"


def find(paths: Paths, *, timeout: float = PROBE_TIMEOUT, patient: bool = False) -> DaemonState | None:
    """The daemon that answers now, or None.

    ``patient``: its supervisor's answer is enough, for it holds the port and replaces a worker that is missing or hung.
    """
    state = load(paths.daemon_state)
    if state is None or not is_alive(state.pid, state.pid_identity):
        return None
    if patient and certificates_ready(paths, state.intercept) and handover.ask(paths.run, state, timeout) is not None:
        return state
    return state if probe(state, timeout) is not None else None


def certificates_ready(paths: Paths, intercept: Iterable[str]) -> bool:
    """Whether the files that a child is given are those that a worker would make, so that nobody need wait for one."""
    try:
        known = json.loads((paths.run / "certificates.json").read_bytes())
        fits = known["names"] == sorted(set(intercept)) and time.time() < known["until"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return fits and all((paths.ca / name).is_file() for name in ("bundle.pem", "child-bundle.pem"))


def ensure(
    config: Config,
    env: Mapping[str, str],
    *,
    timeout: float = START_TIMEOUT,
    explicit: bool = False,
    here: Here | None = None,
) -> Running:
    """A daemon that answers and is not older than we are; started or replaced if need be.

    ``env`` is the launcher's environment. ``timeout`` in seconds bounds a start. ``explicit``: the person asked for
    the daemon itself, so the per-launch settings given here are meant for the traffic that belongs to no launch, and
    it is waited for until it answers; a launcher need only know that the port is held. ``here`` runs a command line of
    ours in this process, see ``serve.supervise``. Raises LaunchError.
    """
    paths = Paths(config.settings.data_dir)
    running = find(paths, patient=not explicit)
    if running is not None and not is_older(running.version):
        return Running(running, notices=tuple(differences(config, running)))
    with start_lock(_lock(paths), timeout + HUNG_TIMEOUT + CLOSE_TIMEOUT):
        running = find(paths, patient=not explicit)
        if running is not None and not is_older(running.version):
            return Running(running, notices=tuple(differences(config, running)))
        if running is None:
            _refuse_hung(paths)
            return _start(config, env, None, timeout, explicit=explicit, here=here)
        replaced = f"the proxy {running.version} is replaced by {__version__}; its running answers finish first"
        if not _hands_over(config, running, running.listen):
            _close_listener(running)
            started = _start(config, env, running.listen, timeout, explicit=explicit, here=here)
        else:
            try:
                started = _start(config, env, running.listen, timeout, explicit=explicit, take_over=True, here=here)
            except LaunchError as error:  # the older one serves on
                return Running(running, notices=(f"{error}. The proxy {running.version} goes on",))
        return dataclasses.replace(started, notices=(replaced, *started.notices))


def restart(
    config: Config, env: Mapping[str, str], *, timeout: float = START_TIMEOUT, here: Here | None = None
) -> Running:
    """Replace the daemon, or start one: the new one takes the port over, the old one finishes its running answers.

    Where the old one cannot hand its port over, or another one is asked for, it closes it first. Raises LaunchError; a
    proxy that could have handed over then still runs.
    """
    paths = Paths(config.settings.data_dir)
    with start_lock(_lock(paths), timeout + CLOSE_TIMEOUT):
        state = load(paths.daemon_state)
        listen: tuple[str, ...] | None = None
        if state is not None and is_alive(state.pid, state.pid_identity):
            if not _given(config, "listen"):
                listen = state.listen
            if _hands_over(config, state, listen):
                return _start(config, env, listen, timeout, explicit=True, take_over=True, here=here)
            _close_listener(state)
        return _start(config, env, listen, timeout, explicit=True, here=here)


def stop(paths: Paths, *, wait: float, force: bool = False) -> Stopped:
    """End the daemon gracefully, waiting up to ``wait`` seconds for its last answers.

    ``force`` cuts them off, and ends predecessors that are still finishing theirs, too. Raises LaunchError when it does
    not even close its port.
    """
    make_private(paths.run)
    with start_lock(_lock(paths), CLOSE_TIMEOUT * 2):
        state = load(paths.daemon_state)
        if force:
            return _force(paths, state)
        if state is None or not is_alive(state.pid, state.pid_identity):
            with contextlib.suppress(OSError):
                paths.daemon_state.unlink()
            return Stopped.NOT_RUNNING
        _close_listener(state)
        if child.wait_gone(state.pid, state.pid_identity, wait):
            state.forget(paths.daemon_state)
            return Stopped.STOPPED
        return Stopped.DRAINING


def _force(paths: Paths, state: DaemonState | None) -> Stopped:
    """Kill the daemon, its workers, and what is left of earlier ones."""
    supervisors = {family.supervisor for family in handover.families(paths.run)}
    if state is not None:
        supervisors.add((state.pid, state.pid_identity))
    killed = {pid: identity for pid, identity in supervisors if child.kill(pid, identity)}
    # Only now, for a supervisor that lives replaces the worker that it loses.
    handover.wait_until_gone(killed, CLOSE_TIMEOUT)
    workers = {worker for family in handover.families(paths.run) for worker in family.workers}
    killed |= {pid: identity for pid, identity in workers if child.kill(pid, identity)}
    handover.wait_until_gone(killed, CLOSE_TIMEOUT)
    handover.tidy(paths.run)
    left = load(paths.daemon_state)
    if left is None or not is_alive(left.pid, left.pid_identity):
        with contextlib.suppress(OSError):
            paths.daemon_state.unlink()
    with contextlib.suppress(OSError):
        (paths.run / "degraded").unlink()
    return Stopped.STOPPED if killed else Stopped.NOT_RUNNING


def is_older(version: str) -> bool:
    """True if ``version`` is before ours, so that a daemon of it should make way."""
    return _numbers(version) < _numbers(__version__)


def describe(config: Config) -> dict[str, str]:
    """The process-wide settings as text, without secrets, as the daemon's record holds them.

    Of those whose files are followed only what was asked for beside the user's file: that one is the same for all.
    """
    found: dict[str, str] = {}
    for spec in core_table().specs:
        if spec.scope == "process" and not spec.secret:
            value = getattr(config.settings, spec.name)
            if spec.kind.adds_up:
                value = config.said(spec.name, *TOLD, "project")
            found[spec.name] = "" if value is None else str(spec.kind.encode(value))
    return found


def differences(config: Config, state: DaemonState) -> list[str]:
    """One line for each process-wide setting that was asked for here but is another in the running daemon."""
    found: list[str] = []
    for name, value in describe(config).items():
        theirs = state.settings.get(name)
        if not _given(config, name) or theirs is None or theirs == value or name == "data_dir":
            continue
        if name == "listen" and _served(config.settings.listen, state):
            continue
        shown = _shown(theirs) if name != "listen" else ", ".join(state.listen)
        differ = f"{name} is {_shown(value)} here, but the running proxy has {shown}"
        if value.startswith("{"):
            differ = f"the {name} that were given here are not those of the running proxy"
        found.append(f"{differ}: `dbproxy restart` applies yours to everyone")
    return found


def _start(
    config: Config,
    env: Mapping[str, str],
    listen: tuple[str, ...] | None,
    timeout: float,
    *,
    explicit: bool,
    take_over: bool = False,
    here: Here | None = None,
) -> Running:
    paths = Paths(config.settings.data_dir)
    paths.create()
    wanted = tuple(map(str, config.settings.listen)) if listen is None else listen
    # The predecessor's list names its dashboard's listener too, which has a setting of its own.
    wanted = tuple(address for address in wanted if split_address(address)[1] != config.settings.dashboard_port)
    bound: list[str] = []
    taken: list[str] = []
    for address in wanted:
        if take_over or child.can_bind(address):
            bound.append(address)
        else:
            host, _ = split_address(address)
            taken.append(address)
            bound.append(f"[{host}]:0" if ":" in host else f"{host}:0")
    answer = explicit or take_over or not certificates_ready(paths, _normalised(config.settings.intercept))
    frozen = bool(getattr(sys, "frozen", False))
    environment = child.with_own_package(daemon_environment(env, drop=_variables(), frozen=frozen))
    if config.settings.control_token is not None:
        environment["DBPROXY_CONTROL_TOKEN"] = config.settings.control_token
    if config.settings.client_key is not None:
        environment["DBPROXY_CLIENT_KEY"] = config.settings.client_key
    if explicit and config.settings.parent_proxy is not None and _given(config, "parent_proxy"):
        environment["DBPROXY_PARENT_PROXY"] = config.settings.parent_proxy
    options = _options(config, bound, explicit)

    def enter() -> NoReturn:
        from dbproxy.proc.serve import supervise

        # Who does not wait for an answer counts on the port from now on, whatever becomes of the worker.
        settings = load_settings(options, environment, None)
        supervise(settings, environment, take_over=take_over, patient=not answer, here=here)

    state = child.start_daemon(
        enter,
        state_file=paths.daemon_state,
        stderr_file=paths.logs / "daemon.stderr",
        timeout=timeout,
        answer=answer,
    )
    notices = (
        [
            f"{', '.join(taken)} is taken by another program; the proxy listens on {', '.join(state.listen)} instead. "
            f"Clients that use it as their base URL need ANTHROPIC_BASE_URL={state.url}"
        ]
        if taken
        else []
    )
    return Running(state, started=True, notices=tuple(notices))


def _options(config: Config, listen: list[str], explicit: bool) -> dict[str, object]:
    """The process-wide settings (with ``explicit`` all of them) of this command line and environment, as text or table.

    What they do not name the daemon reads for itself: the user's file, no project's. Paths are absolute, for its
    working directory is another.
    """
    options: dict[str, object] = {"data_dir": str(Path(config.settings.data_dir).absolute())}
    options["listen"] = ",".join(listen)
    for spec in core_table().specs:
        value = getattr(config.settings, spec.name)
        if spec.name in ("data_dir", "listen") or spec.secret or value is None:
            continue
        if spec.scope != "process" and not explicit:
            continue
        if spec.kind.adds_up:
            # Of a project file only what is everybody's; rules of one project are followed by its own launches.
            value = config.said(spec.name, *TOLD, *(["project"] if spec.scope == "process" else []))
            if value is not None:
                options[spec.name] = value.plain()
        elif _given(config, spec.name):
            encoded = spec.kind.encode(value)
            if not isinstance(encoded, dict):
                encoded = ",".join(encoded) if isinstance(encoded, list) else str(encoded)
            options[spec.name] = encoded
    return options


def _hands_over(config: Config, state: DaemonState, listen: tuple[str, ...] | None) -> bool:
    """Whether that daemon can hand over just the sockets that a new one would open (None: those of ``config``)."""
    wanted = [(item.host, item.port) for item in config.settings.listen]
    if listen is not None:
        wanted = [split_address(address) for address in listen]
    dashboard = (wanted[0][0], config.settings.dashboard_port)
    if dashboard[1] is not None and dashboard not in wanted:
        wanted.append((dashboard[0], dashboard[1]))
    offered = [split_address(address) for address in state.listen]
    return (
        same_addresses(wanted, offered)
        and handover.ask(Paths(config.settings.data_dir).run, state, PROBE_TIMEOUT) is not None
    )


def _normalised(names: Iterable[str]) -> set[str]:
    from dbproxy.wire.target import normalise_host

    return {normalise_host(name) for name in names}


def _served(wanted: Iterable[HostPort], state: DaemonState) -> bool:
    """True if the daemon listens wherever was asked for; port 0 asks for any."""
    there = [split_address(address) for address in state.listen]
    return all(any(host == item.host and item.port in (0, port) for host, port in there) for item in wanted)


def _shown(text: str) -> str:
    """A recorded value for a person: without the brackets and quotes of a list."""
    return (text[1:-1].replace("'", "") if text.startswith("[") else text) or "unset"


def _refuse_hung(paths: Paths) -> None:
    """A daemon that lives and holds its port without answering must not get a rival behind its back."""
    state = load(paths.daemon_state)
    if state is None or not is_alive(state.pid, state.pid_identity) or child.can_bind(state.listen[0]):
        return
    if probe(state, HUNG_TIMEOUT) is None and http_get(state.address, "/health", timeout=PROBE_TIMEOUT) is None:
        raise LaunchError(
            f"the background proxy (pid {state.pid}) does not answer", hint="`dbproxy stop --force` ends it"
        )


def _close_listener(state: DaemonState) -> None:
    child.terminate(state.pid, state.pid_identity)
    for address in state.listen:
        if not child.wait_port_free(address, CLOSE_TIMEOUT) and is_alive(state.pid, state.pid_identity):
            raise LaunchError(
                f"the background proxy (pid {state.pid}) does not close its port", hint="`dbproxy stop --force` ends it"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def _lock(paths: Paths) -> Path:
    return paths.run / "start.lock"


def _given(config: Config, name: str) -> bool:
    """True if the setting was asked for here, not in the user's file (which the daemon reads itself) or nowhere."""
    return config.origin(name).source in ("command-line", "environment", "project")


def _variables() -> list[str]:
    """Our own variables that a daemon must not see: the per-launch ones belong to one launch, the process-wide ones
    reach it as options (a relative path in a variable would mean another folder there)."""
    return ["DBPROXY_PROXY_PORT", *(name for spec in core_table().specs if not spec.secret for name in spec.env)]
