"""File of the calibrations made by `torchwatt calibrate`, by device uuid, driver version and sensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Meter
from torchwatt.disk.path_safety import read_user_path
from torchwatt.disk.private_files import make_private_folder, replace_file

FOLDER_VARIABLE = "TORCHWATT_CALIBRATIONS"
_FORMAT = "torchwatt-calibrations"
_VERSION = 1
_MAX_BYTES = 1 << 22  # a thousand GPUs


def calibrations_file(environ: Mapping[str, str] | None = None) -> Path:
    """Return the path of the calibrations file: in TORCHWATT_CALIBRATIONS, else in the user's cache folder (XDG)."""
    env = os.environ if environ is None else environ
    if named := env.get(FOLDER_VARIABLE):
        return Path(named) / "sensors.json"
    cache = Path(env["XDG_CACHE_HOME"]) if env.get("XDG_CACHE_HOME") else Path.home() / ".cache"
    return cache / "torchwatt" / "sensors.json"


def calibration_key(meter: Meter, sensor: str) -> str | None:
    """Return the key of a meter's calibration; None if the meter has no uuid or driver version."""
    uuid, driver = meter.fact("uuid"), meter.fact("driver")
    return f"{uuid}/{driver}/{sensor}" if uuid and driver else None


def load_calibrations(path: Path) -> dict[str, Any]:
    """Load the calibrations by key; empty if the file does not exist.

    Raises:
        ConfigError: The file cannot be read or is not a calibrations file of this version.
    """
    try:
        content = json.loads(read_user_path(path, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the calibrations in {path}: {error}; delete it and calibrate again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise ConfigError(f"{path} is not a calibrations file of this version; delete it and calibrate again")
    sensors = content.get("sensors")
    if not isinstance(sensors, dict) or not all(isinstance(model, dict) for model in sensors.values()):
        raise ConfigError(f"{path} holds no calibrations; delete it and calibrate again")
    return sensors


def save_calibration(path: Path, key: str, model: Mapping[str, object]) -> None:
    """Add or replace one calibration; the file is replaced atomically."""
    sensors = load_calibrations(path) | {key: dict(model)}
    make_private_folder(path.parent)
    text = json.dumps({"format": _FORMAT, "version": _VERSION, "sensors": sensors}, indent=1) + "\n"
    replace_file(path, text.encode())
