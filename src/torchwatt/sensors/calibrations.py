"""Calibrations that the user made with `torchwatt calibrate`, kept by what must not change under them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Meter
from torchwatt.disk.path_safety import read_named
from torchwatt.disk.private import private_folder, replace_file

FOLDER_VARIABLE = "TORCHWATT_CALIBRATIONS"
_FORMAT = "torchwatt-calibrations"
_VERSION = 1
_MAX_BYTES = 1 << 22  # a thousand GPUs


def calibrations_file(environ: Mapping[str, str] | None = None) -> Path:
    """Return where calibrations are kept: TORCHWATT_CALIBRATIONS, else the user's cache folder (XDG)."""
    env = os.environ if environ is None else environ
    if named := env.get(FOLDER_VARIABLE):
        return Path(named) / "sensors.json"
    cache = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return cache / "torchwatt" / "sensors.json"


def calibration_key(meter: Meter, sensor: str) -> str | None:
    """Return under which name a meter's calibration is kept; None where the device cannot be told from others."""
    uuid, driver = meter.fact("uuid"), meter.fact("driver")
    return f"{uuid}/{driver}/{sensor}" if uuid and driver else None


def load_calibrations(path: Path) -> dict[str, Any]:
    """Return what was kept, by key; nothing where there is no file.

    Raises:
        ConfigError: The file is not one of ours, or is damaged.
    """
    try:
        told = json.loads(read_named(path, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the calibrations in {path}: {error}; delete it and calibrate again") from error
    if not isinstance(told, dict) or told.get("format") != _FORMAT or told.get("version") != _VERSION:
        raise ConfigError(f"{path} is no calibrations file of this version; delete it and calibrate again")
    sensors = told.get("sensors")
    if not isinstance(sensors, dict) or not all(isinstance(model, dict) for model in sensors.values()):
        raise ConfigError(f"{path} holds no calibrations; delete it and calibrate again")
    return sensors


def save_calibration(path: Path, key: str, model: Mapping[str, object]) -> None:
    """Keep one calibration beside the others: written whole, then moved into place."""
    sensors = load_calibrations(path) | {key: dict(model)}
    private_folder(path.parent)
    text = json.dumps({"format": _FORMAT, "version": _VERSION, "sensors": sensors}, indent=1) + "\n"
    replace_file(path, text.encode())
