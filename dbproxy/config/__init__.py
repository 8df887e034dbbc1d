"""Settings: one table, and everything that reads it.

``load`` gives a ``Config``; its ``settings`` are plain typed values. ``values`` and ``tables`` hold the kinds of
values, ``settings`` the table, ``files`` the reading of files and the trust in a project's, ``load`` the sources;
``following``, ``legacy`` and ``docs`` are imported by who needs them.
Imports ``dbproxy.errors`` and ``dbproxy.paths`` only.
"""

from __future__ import annotations

from dbproxy.config.files import PROJECT_FILE, find_project_file
from dbproxy.config.load import (
    TOLD,
    Config,
    Layer,
    Origin,
    Project,
    Refusal,
    SettingsError,
    forget_project,
    load,
    suggestion,
    trust_project,
    with_settings,
)
from dbproxy.config.settings import KNOWN_ENVIRONMENT, Settings, Spec, Table, core_table, plugin_setting, setting
from dbproxy.config.tables import Section
from dbproxy.config.values import Context, HostPort, Kind, mask_userinfo

__all__ = [
    "KNOWN_ENVIRONMENT",
    "PROJECT_FILE",
    "TOLD",
    "Config",
    "Context",
    "HostPort",
    "Kind",
    "Layer",
    "Origin",
    "Project",
    "Refusal",
    "Section",
    "Settings",
    "SettingsError",
    "Spec",
    "Table",
    "core_table",
    "find_project_file",
    "forget_project",
    "load",
    "mask_userinfo",
    "plugin_setting",
    "setting",
    "suggestion",
    "trust_project",
    "with_settings",
]
