"""`torchwatt calibrate`: measures the response of a GPU's power sensor, and saves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchwatt.core.plain_text import printable
from torchwatt.sensors.calibrations import calibrations_file

if TYPE_CHECKING:
    from torchwatt.session.calibrate import Calibration


def calibrate_device(device: str, seconds: float) -> int:
    """Load one GPU for some seconds, fit its sensor's response, save and print it; return the exit status."""
    from torchwatt.session.calibrate import calibrate

    path = calibrations_file()
    print(printable(f"Driving {device} with an uneven square wave for {seconds:g} s; run nothing else on it."))
    result = calibrate(device, seconds=seconds, path=path)
    for calibration in (result, result.fine):
        if calibration is not None:
            _print(calibration)
    print(printable(f"Saved in {path} for this card, driver and field."))
    return 0


def _print(calibration: Calibration) -> None:
    model = calibration.model
    print(printable(f"{calibration.meter.domain}  {calibration.meter.model}: {calibration.channel.sensor}"))
    print(f"  publishes every {model.period_s * 1e3:.3f} ms")
    print(f"  each reading: {model.kernel}, {model.kernel.lag_s * 1e3:+.2f} ms late")
    print(f"  residual of {calibration.readings} readings: {model.rms_w:.2f} W rms")
