"""``dbproxy claude`` and ``dbproxy run``: a scope, an environment, and then this process becomes the agent.

Owns the order of a launch and what is said about it. Must never import trio, cryptography or argparse: this is on the
way of every start. Invariants: the child's arguments are untouched; whatever fails on our side, the agent starts, at
worst without us, and one line says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from dbproxy.cli.common import current_folder, load_config, say
from dbproxy.cli.options import UsageError
from dbproxy.errors import DbproxyError, LaunchError
from dbproxy.proc import child
from dbproxy.proc import env as environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dbproxy.config import Config
    from dbproxy.paths import Paths
    from dbproxy.scope import Scope


@dataclass(frozen=True, slots=True)
class Prepared:
    """A launch that is ready: the child's environment and what to tell the person."""

    env: dict[str, str]
    notices: tuple[str, ...]
    scope_file: Path | None = None


def launch(word: str, rest: Sequence[str], overrides: Mapping[str, str]) -> int:
    """Start the child; on success this never returns (but on Windows, with the child's exit code)."""
    base = dict(os.environ)
    name, arguments = _child_words(word, rest)
    frozen = bool(getattr(sys, "frozen", False))
    program = child.find_program(name, environment.without_pyinstaller(base) if frozen else base)
    try:
        prepared = prepare(word, arguments, overrides, base, frozen=frozen)
    except UsageError:
        raise
    except Exception as error:
        # Also what nobody foresaw: a fault of ours must not keep the agent from starting.
        text = str(error) if isinstance(error, DbproxyError | OSError) else f"{type(error).__name__}: {error}"
        reason = "; ".join(text.splitlines()).rstrip(".")
        say(f"OFF for this run: {reason}. {name} starts without the proxy")
        prepared = Prepared(_direct(base, overrides, frozen=frozen), ())
    for notice in prepared.notices:
        say(notice)
    try:
        return child.become(program, [name, *arguments], prepared.env)
    except LaunchError:
        if prepared.scope_file is not None:
            with contextlib.suppress(OSError):
                prepared.scope_file.unlink()
        raise


def prepare(
    word: str, arguments: Sequence[str], overrides: Mapping[str, str], base: Mapping[str, str], *, frozen: bool
) -> Prepared:
    """Find or start the proxy, register a scope, make the environment. Raises DbproxyError or OSError."""
    from dbproxy.cli import main
    from dbproxy.paths import Paths
    from dbproxy.proc import client, daemon

    config = load_config(overrides, base)
    paths = Paths(config.settings.data_dir)
    user = _user_environment(base, paths)
    if user != base:
        config = load_config(overrides, user)
    running = daemon.ensure(config, user, here=main)
    notices = [*([config.project.notice] if config.refused and config.project else []), *running.notices]
    intercept = running.state.intercept or tuple(config.settings.intercept)
    bundle = paths.ca / "bundle.pem"
    files = client.settings_files(user, current_folder(), arguments) if word == "claude" else []
    # The client reads its compaction variables from its settings files, too, and those win over the environment.
    seen = {**user, **{name: value for name, (value, _) in client.effective(files).items()}}
    scope = _scope(config, user, seen, bundle)
    node, problem = _node_bundle(scope, user.get("NODE_EXTRA_CA_CERTS"), paths, bundle)
    notices.extend(problem)
    merged = _merged_bundles(scope, user, paths, bundle)
    notices.extend(f"{file.path} is ignored: {file.problem}" for file in files if file.problem)
    full = paths.ca / "child-bundle.pem"
    result = environment.child_environment(
        user,
        userinfo=scope.userinfo,
        url=running.state.url,
        bundles=environment.Bundles(node=str(node), full=str(full) if full.is_file() else "", merged=merged),
        intercept=intercept,
        compact_window=environment.compact_window(config.settings.swap_threshold)
        if config.settings.early_swap and not seen.get("DISABLE_AUTO_COMPACT")
        else None,
        frozen=frozen,
    )
    notices.extend(result.notices)
    notices.extend(
        str(conflict)
        for conflict in client.conflicts(user, files, url=running.state.url, intercept=intercept, root=str(bundle))
    )
    return Prepared(result.env, tuple(notices), scope.save(paths.scopes))


def _child_words(word: str, rest: Sequence[str]) -> tuple[str, list[str]]:
    if word == "claude":
        return "claude", list(rest)
    words = list(rest)
    if words and words[0] == "--":
        words = words[1:]
    elif words and words[0].startswith("-"):
        raise UsageError(f"{words[0]} stands behind `run`: our own options go before it, the program right after it")
    if not words:
        raise UsageError("run needs a program: dbproxy run [--] CMD [ARGS...]")
    return words[0], words[1:]


def _user_environment(base: Mapping[str, str], paths: Paths) -> dict[str, str]:
    """The environment as it is without us: a launch inside a launch must not take us for the user's own proxy."""
    from dbproxy.scope import Scopes
    from dbproxy.state import load

    credentials = environment.outer_credentials(base)
    outer = Scopes(paths.scopes).lookup(*credentials) if credentials is not None else None
    state = load(paths.daemon_state)
    ours = outer is not None or (
        state is not None and environment.same_endpoint(base.get("DBPROXY_URL", ""), state.url)
    )
    if not ours:
        # Somebody else's dbproxy (another data directory) is simply the proxy that we find here.
        return {name: value for name, value in base.items() if name not in environment.MARKS}
    cleaned = environment.without_ours(
        base,
        outer_proxy=outer.parent_proxy if outer is not None else None,
        outer_no_proxy=outer.no_proxy if outer is not None else "",
        our_files=(str(paths.ca), str(paths.scopes)),
    )
    if outer is not None and outer.extra_ca and not cleaned.get("NODE_EXTRA_CA_CERTS"):
        cleaned["NODE_EXTRA_CA_CERTS"] = outer.extra_ca[0]
    return cleaned


def _direct(base: Mapping[str, str], overrides: Mapping[str, str], *, frozen: bool) -> dict[str, str]:
    """The environment of a child that starts without us: none of our variables, whatever state the disk is in."""
    from dbproxy.paths import Paths

    try:
        folder = load_config(overrides, base).settings.data_dir
        env = _user_environment(base, Paths(folder))
    except Exception:
        env = environment.without_ours(base)
    return environment.without_pyinstaller(env) if frozen else env


def _scope(config: Config, user: Mapping[str, str], seen: Mapping[str, str], bundle: Path) -> Scope:
    from dbproxy.scope import Scope, new_id, new_secret
    from dbproxy.state import process_identity

    folder = current_folder()
    trusted = [user[name] for name in ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE") if user.get(name)]
    return Scope(
        id=new_id(),
        secret=new_secret(),
        cwd=str(folder) if folder is not None else "",
        pid=os.getpid(),
        pid_identity=process_identity(os.getpid()),
        created=time.time(),
        settings=config.launch_values(),
        project=config.project_values(),
        client={name: seen[name] for name in environment.COMPACTION_VARIABLES if seen.get(name)},
        parent_proxy=config.settings.parent_proxy or environment.user_proxy(user),
        no_proxy=",".join(config.settings.no_proxy) or environment.user_no_proxy(user),
        extra_ca=tuple(dict.fromkeys(trusted)),
        labels=dict(config.settings.labels),
        root=_fingerprint(bundle),
    )


def _fingerprint(bundle: Path) -> str:
    """SHA-256 of the current root, the first certificate of the bundle, as the authority names it (lower-case hex)."""
    import base64

    try:
        # ``hashlib`` prefers OpenSSL's, and to load that takes 4 ms of a launch.
        sha256 = import_module("_sha256").sha256
    except ImportError:
        from hashlib import sha256

    try:
        text = bundle.read_text("ascii", "replace")
        body = text.split("-----BEGIN CERTIFICATE-----", 1)[1].split("-----END CERTIFICATE-----", 1)[0]
        return str(sha256(base64.b64decode(body)).hexdigest())
    except (OSError, IndexError, ValueError) as error:
        raise LaunchError(
            f"the proxy's root certificate {bundle} cannot be read", hint="`dbproxy restart` writes it anew"
        ) from error


def _node_bundle(scope: Scope, own: str | None, paths: Paths, bundle: Path) -> tuple[Path, list[str]]:
    """The file for NODE_EXTRA_CA_CERTS: our roots, and what the user's own variable named."""
    if not own:
        return bundle, []
    try:
        return _joined(scope, "ca", own, paths, bundle), []
    except OSError as error:
        return bundle, [f"your NODE_EXTRA_CA_CERTS={own} is ignored: {error.strerror or error}"]


def _merged_bundles(scope: Scope, user: Mapping[str, str], paths: Paths, bundle: Path) -> dict[str, str]:
    """Files for those bundle variables that the user has set himself: his roots and ours.

    Left alone, his curl and Python would trust his list only, and fail where they reach the API through us. What
    cannot be read as a file (a folder, a missing one) stays as it is.
    """
    merged: dict[str, str] = {}
    for name in environment.BUNDLE_VARIABLES:
        if user.get(name):
            with contextlib.suppress(OSError):
                merged[name] = str(_joined(scope, name.lower(), user[name], paths, bundle))
    return merged


def _joined(scope: Scope, name: str, theirs: str, paths: Paths, bundle: Path) -> Path:
    from pathlib import Path

    from dbproxy.paths import make_private, write_private

    data = Path(theirs).read_bytes()
    make_private(paths.scopes)
    target = paths.scopes / f"{scope.id}.{name}.pem"
    write_private(target, bundle.read_bytes().rstrip() + b"\n" + data, lasting=False)
    return target
