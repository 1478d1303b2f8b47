"""`torchwatt calibrate`: find out what this machine's GPU power sensors do to power, and keep it."""

from __future__ import annotations

from torchwatt.core.plain_text import printable
from torchwatt.sensors.calibrations import calibrations_file
from torchwatt.session.calibrate import Calibration, calibrate


def calibrate_device(device: str, seconds: float) -> int:
    """Drive one GPU for some seconds, print what was found and where it is kept."""
    path = calibrations_file()
    print(printable(f"Driving {device} with an uneven square wave for {seconds:g} s; nothing else should run on it."))
    found = calibrate(device, seconds=seconds, path=path)
    for one in (found, found.fine):
        if one is not None:
            _print(one)
    print(printable(f"Kept in {path} for this card, driver and field."))
    return 0


def _print(found: Calibration) -> None:
    model = found.model
    print(printable(f"{found.meter.domain}  {found.meter.model}: {found.channel.sensor}"))
    print(f"  publishes every {model.period_s * 1e3:.3f} ms")
    print(f"  each reading: {model.kernel}, {model.kernel.lag_s * 1e3:+.2f} ms late")
    print(f"  leaves {model.rms_w:.2f} W rms of {found.readings} readings unexplained")
