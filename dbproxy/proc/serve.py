"""The first steps of ``dbproxy serve``: listen, say so, and become the supervisor.

Owns the plan that the supervisor works by. Must never import trio or cryptography. Invariants: what needs time comes
after listening; the process id that is recorded is the supervisor's, for this very process becomes it; settings are
read once, so that a file edited meanwhile never breaks a proxy that replaces its worker.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, NoReturn

from dbproxy import __version__
from dbproxy.config import Config, Settings
from dbproxy.errors import ConfigError, LaunchError
from dbproxy.paths import Paths, make_private
from dbproxy.proc import child, firstborn, handover
from dbproxy.proc.daemon import describe
from dbproxy.proc.listen import addresses, bind, names, same_addresses
from dbproxy.proc.supervisor import SIGNALS, worker_words
from dbproxy.state import DaemonState, load, process_identity
from dbproxy.wire.target import normalise_host

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dbproxy.proc.firstborn import Here

_TAKE_TIMEOUT = 2.0  # seconds for a predecessor to answer over a local socket


def is_supported() -> bool:
    """Whether this system lets one process hold the sockets and others serve them."""
    return sys.platform != "win32"


def supervise(
    config: Config,
    env: Mapping[str, str],
    *,
    take_over: bool = False,
    patient: bool = False,
    debug: bool = False,
    tuning: Mapping[str, float] | None = None,
    here: Here | None = None,
) -> NoReturn:
    """Become the supervisor of a proxy with this configuration; never returns.

    ``take_over``: get the sockets of the proxy that runs now instead of binding them; it drains once we serve.
    ``patient``: clients count on us already, so go on (in the end as a blind tunnel) when the worker cannot start.
    ``tuning`` replaces defaults of ``supervisor.DEFAULTS``. ``here`` runs a command line of ours in this process, for
    the first worker (see ``firstborn``). Raises DbproxyError when we cannot listen.
    """
    settings = config.settings
    paths = Paths(settings.data_dir)
    paths.create()
    make_private(paths.run / "supervisors")
    predecessor = _predecessor(paths, settings) if take_over else None
    sockets = bind(addresses(settings)) if predecessor is None else list(predecessor.sockets)
    state = DaemonState.of_this_process(
        listen=names(sockets),
        data_dir=paths.data_dir,
        intercept=tuple(sorted({normalise_host(name) for name in settings.intercept})),
        settings=describe(config),
        dashboard=f"https://localhost:{settings.dashboard_port}" if settings.dashboard_port else "",
    )
    listen = [sock.fileno() for sock in sockets]
    described = _anonymous(paths.run, dump_config(config))
    work = [*(["--debug"] if debug else []), "work"]
    env = child.with_own_package(env)
    sys.stdout.flush()
    sys.stderr.flush()
    # Whoever reads the record may signal us from then on; until the supervisor's handlers stand, signals wait. Those of
    # the terminal reach the worker, too, which lets them wait until it ignores them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    told = {"config": described, "instance": state.instance, "after": "", "degraded": ""}
    first = firstborn.start(
        child.own_command(),
        lambda end: [*work, *worker_words(listen, control=end, **told)],
        env,
        fds=(*listen, described),
        here=here,
    )
    plan = {
        "listen": listen,
        "config": described,
        "run": str(paths.run),
        "instance": state.instance,
        "identity": process_identity(os.getpid()),
        "version": __version__,
        "record": state.to_json() if predecessor is not None else None,
        "record_path": str(paths.daemon_state),
        "worker": [*child.own_command(), *work],
        "firstborn": [first.pid, first.channel.fileno()] if first is not None else None,
        "drain": settings.drain_timeout,
        "patient": patient,
        "takeover": predecessor.connection.fileno() if predecessor is not None else -1,
        "banner": f"dbproxy {__version__} listens on {state.url}\n",
        "tuning": dict(tuning or {}),
    }
    inherited = [*sockets, *([predecessor.connection] if predecessor is not None else [])]
    inherited += [first.channel] if first is not None else []
    try:
        for sock in inherited:
            sock.set_inheritable(True)
        if predecessor is None:
            handover.tidy(paths.run)
            state.save(paths.daemon_state)
        command = [*child.own_command(), "supervise", str(_anonymous(paths.run, json.dumps(plan).encode()))]
        os.execvpe(command[0], command, env)
    except BaseException as error:
        if first is not None:
            first.give_up()
        state.forget(paths.daemon_state)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if not isinstance(error, OSError):
            raise
        raise LaunchError(f"the supervisor cannot be started: {error.strerror or error}") from error


def dump_config(config: Config) -> bytes:
    """What a worker needs of a configuration: the settings and the sections of plugins, as values, and what each source
    said of the settings whose files are followed."""
    settings = {item.name: getattr(config.settings, item.name) for item in fields(Settings)}
    plugins = {name: dict(section) for name, section in config.plugins.items()}
    layers = {name: tuple(layers) for name, layers in config.layers.items()}
    return pickle.dumps({"settings": settings, "plugins": plugins, "user_file": config.user_file, "layers": layers})


def load_config(fd: int) -> Config:
    """The configuration in the anonymous file ``fd``; a newer program takes what it knows of an older one's."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    try:
        raw = pickle.loads(data)  # made by ourselves, in a file without a name
        known = {item.name for item in fields(Settings)}
        settings = Settings(**{name: value for name, value in raw["settings"].items() if name in known})
        return Config(settings, {}, raw["user_file"], plugins=raw["plugins"], layers=raw.get("layers", {}))
    except Exception as error:
        raise ConfigError(
            "the settings of the running proxy cannot be read by this version", hint="`dbproxy restart` starts it anew"
        ) from error


def parse_tuning(text: str) -> dict[str, float]:
    """``name=seconds,...`` apart. ValueError on anything that is no such list."""
    from dbproxy.proc.supervisor import DEFAULTS

    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in DEFAULTS:
            raise ValueError(f"unknown: {name}")
        found[name] = float(value)
    return found


def _predecessor(paths: Paths, settings: Settings) -> handover.Taken:
    state = load(paths.daemon_state)
    if state is None:
        raise LaunchError("there is no proxy whose port could be taken over", hint="Start without --take-over")
    taken = handover.take(paths.run, state, _TAKE_TIMEOUT)
    offered = [sock.getsockname()[:2] for sock in taken.sockets]
    wanted = addresses(settings)
    if not same_addresses([(item.host, item.port) for item in wanted], offered):
        for sock in taken.sockets:
            sock.close()
        taken.connection.close()
        raise LaunchError(
            f"the running proxy listens on {', '.join(names(list(taken.sockets)))}, not where this one should",
            hint="`dbproxy stop`, then start anew",
        )
    return taken


def _anonymous(folder: Path, data: bytes) -> int:
    """An inheritable descriptor of a file without a name that holds ``data``: it may hold secrets."""
    if sys.platform == "linux":
        fd = os.memfd_create("dbproxy", 0)
    else:
        import tempfile

        with tempfile.TemporaryFile(dir=folder) as file:
            fd = os.dup(file.fileno())
    os.write(fd, data)
    os.set_inheritable(fd, True)
    return fd
