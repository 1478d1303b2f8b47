"""`torchwatt calibrate` as a user runs it; the file of calibrations goes to the output folder."""

import sys
from pathlib import Path

from torchwatt.offline.sensor_calibration import calibrate

if __name__ == "__main__":
    found = calibrate("gpu:0", path=Path(sys.argv[1]) / "calibrations.json")
    print(found.key, found.readings, found.model)
