"""``dbproxy config``: what holds and why, whether it is right, where it is, and taking over older files.

Thin: everything is ``dbproxy.config``. Must never import trio or the network. Invariant: no secret is printed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dbproxy.cli.common import current_folder, print_json, say
from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dbproxy.config import Config

#: Values that are longer do not push the origins of all others away.
_WIDEST = 60


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` and its own subcommands."""
    parser = subparsers.add_parser("config", help="show and check the settings and where each came from")
    parser.set_defaults(func=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every setting with its value")
    show.add_argument("--origin", action="store_true", help="also where each value came from")
    show.add_argument("--json", action="store_true", help="as one JSON document")
    actions.add_parser("check", help="say what is wrong with the settings; exit code 1 if anything is")
    path = actions.add_parser("path", help="the files and folders that are used")
    path.add_argument("--json", action="store_true", help="as one JSON document")
    imports = actions.add_parser("import", help="take over a .env or YAML file of an earlier tool")
    imports.add_argument("file", metavar="FILE")
    imports.add_argument("--dry-run", action="store_true", help="only say what would be written")
    trust = actions.add_parser("trust", help="let a project file set everything, until it changes")
    trust.add_argument("directory", metavar="DIR", nargs="?", default=".")
    trust.add_argument("--forget", action="store_true", help="take the trust back")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    actions = {"show": _show, "check": _check, "path": _path, "import": _import, "trust": _trust}
    return actions[args.action](args)


def _load(args: argparse.Namespace) -> Config:
    """What holds, problems included: these commands exist to show them."""
    from dbproxy.config import load

    return load(getattr(args, "overrides", {}), os.environ, current_folder(), strict=False)


def _complain(config: Config) -> int:
    for problem in config.problems:
        say(problem)
    if config.project is not None and config.project.refused:
        for refusal in config.project.refused:
            say(f"{config.project.file}: ignored: {refusal}")
        say(f"if you wrote that file: dbproxy config trust {config.project.file.parent}")
    return 1 if config.problems else 0


def _show(args: argparse.Namespace) -> int:
    config = _load(args)
    code = _complain(config)
    specs = config.table.specs
    if args.json:
        shown = {spec.key: _json_value(config, spec.name) for spec in specs}
        # Of a plugin's section only the names: nobody said which of its values are secret.
        plugins = {name: sorted(section) for name, section in config.plugins.items()}
        document: dict[str, object] = {"settings": shown, "plugins": plugins}
        if args.origin:
            document["origins"] = {key: origin for key, _value, origin in _rows(config)}
        document["problems"] = list(config.problems)
        document["refused"] = [str(refusal) for refusal in config.refused]
        print_json(document)
        return code
    rows = list(_rows(config))
    key_width = max(len(row[0]) for row in rows)
    value_width = min(max(len(row[1]) for row in rows), _WIDEST)
    for key, value, origin in rows:
        print(
            f"{key:<{key_width}}  {value:<{value_width}}  {origin}" if args.origin else f"{key:<{key_width}}  {value}"
        )
    for name in config.plugins:
        print(f"[plugins.{name}]  {', '.join(config.plugins[name])}")
    return code


def _rows(config: Config) -> Iterator[tuple[str, str, str]]:
    """Name, value and origin of every setting; of a table of each of its entries."""
    from dbproxy.config.tables import toml, toml_key

    for spec in config.table.specs:
        entries = config.entries(spec.name)
        value = f"{len(entries)} of them" if entries else spec.kind.text(config.value(spec))
        yield spec.key, value, str(config.origin(spec.name))
        for name, entry, origin in entries:
            yield f"{spec.key}.{toml_key(name)}", toml(entry), str(origin)


def _json_value(config: Config, name: str) -> object:
    spec = next(spec for spec in config.table.specs if spec.name == name)
    value = config.value(spec)
    if value is None:
        return None
    return spec.kind.text(value) if spec.secret else spec.kind.encode(value)


def _check(args: argparse.Namespace) -> int:
    config = _load(args)
    code = _complain(config)
    if code == 0:
        given = sum(config.origin(spec.name).source != "default" for spec in config.table.specs)
        print(f"the settings are good; {given} of {len(config.table.specs)} are given, the others have their defaults")
    return code


def _path(args: argparse.Namespace) -> int:
    config = _load(args)
    project = config.project.file if config.project else None
    found = {"user": config.user_file, "project": project, "data": config.settings.data_dir}
    if args.json:
        print_json({name: None if path is None else str(path) for name, path in found.items()})
        return 0
    for name, path in found.items():
        state = "(none)" if path is None else f"{path}" if path.exists() else f"{path}  (not there yet)"
        print(f"{name:<8} {state}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from dbproxy.config.legacy import import_file

    result = import_file(Path(args.file), os.environ, write=not args.dry_run)
    for line in result.skipped:
        say(f"left out: {line}")
    for line in result.noted:
        say(line)
    if not result.text:
        say(f"nothing to take over from {args.file}")
        return 1
    sys.stdout.write(result.text)
    print(f"# {'nothing written; this would go' if args.dry_run else 'written'} to {result.file}")
    return 0


def _trust(args: argparse.Namespace) -> int:
    from dbproxy.config import forget_project, load, trust_project

    directory = Path(args.directory)
    if args.forget:
        if not forget_project(directory, os.environ):
            raise ConfigError(f"{directory.resolve()} was not trusted")
        print(f"{directory.resolve()} is not trusted any more")
        return 0
    project = trust_project(directory, os.environ)
    config = load({}, os.environ, project.file.parent, strict=False)
    print(f"{project.file} is trusted until it changes. It sets:")
    for key, value, origin in _rows(config):
        if origin.startswith("project"):
            print(f"  {key} = {value}")
    for name in config.plugins:
        print(f"  [plugins.{name}]")
    return _complain(config)
