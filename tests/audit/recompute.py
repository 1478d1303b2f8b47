"""Compute a run's joules and grams again from the tables, as with a spreadsheet: the csv module and nothing else.

python recompute.py BUNDLE     (with sample.csv.gz; prints JSON)
"""

import csv
import gzip
import json
import sys
from pathlib import Path

bundle = Path(sys.argv[1])


def table(name):
    with (bundle / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


counted = {row["device_id"] for row in table("device") if row["counted"] == "true"}

with gzip.open(bundle / "sample.csv.gz", "rt", newline="", encoding="utf-8") as file:
    from_power_j, before = 0.0, {}
    for row in csv.DictReader(file):
        device, t_s = row["device_id"], int(row["t_ns"]) / 1e9
        if device in before and device in counted:
            from_power_j += float(row["power_w"]) * (t_s - before[device])
        before[device] = t_s

from_layers_j = sum(float(row["energy_self_j"]) for row in table("layer"))
from_hours_j = sum(float(row["energy_j"]) for row in table("hourly"))

factor = {row["kind"]: float(row["value"]) for row in table("factor") if row["accounting_method"] != "market"}
grams = from_layers_j / 3_600_000 * factor.get("pue", 1.0) * factor["grid_gwp"]

found = {"samples_j": from_power_j, "layers_j": from_layers_j, "hours_j": from_hours_j, "grams": grams}
print(json.dumps(found))  # noqa: T201  # the caller reads it
