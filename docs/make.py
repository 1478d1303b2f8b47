"""Make the pages and pictures that are made from the code: `make docs`. Tests compare the pages with what is committed.

    PYTHONPATH=. python docs/make.py [schema] [audit] [readme]

The README's own code blocks run in JupyterLab in Chromium: their report is its picture, what they print is its text.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tests.audit.planted import defects
from tests.audit.planted.forger import Forger
from tests.support.worlds import World

from torchwatt.audit import Seal, verify, write_bundle
from torchwatt.audit.table_descriptions import schema_markdown
from torchwatt.carbon import CarbonOptions
from torchwatt.carbon.pricing_plan import make_plan
from torchwatt.core.report import Report
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- made by docs/make.py -->", "<!-- end of what docs/make.py made -->"
FORGED_BEGIN, FORGED_END = "<!-- forged by docs/make.py -->", "<!-- end of what docs/make.py forged -->"
PICTURES = {"JupyterLab Light": "report-light.png", "JupyterLab Dark": "report-dark.png"}  # by JupyterLab's theme
VIEW_PICTURES = {  # of docs/reports.md
    "hottest": "view-hottest.png", "blocks": "view-blocks.png", "tree": "view-tree.png", "type": "view-type.png",
}  # fmt: skip
MEASURED_CELL = 1  # of the README's cells: the one that is pictured
PICTURE_HEIGHT = 2000  # of the window, in which the whole report is drawn
COUNTER = ("start_raw", "end_raw", "wraps", "modulus_raw", "unit_j", "difference_j", "gap_j")
LAYER_ENERGY = ("energy_self_j", "energy_self_lo_j", "energy_self_hi_j", "energy_share", "energy_per_call_j")
RUN_ID = "0193f2c1-7a55-7c11-9d2e-3f1a5b6c7d8e"
MODULUS = 16_000_000  # microjoules: the recorded counter wraps every 16 J


def report() -> Report:
    """Replay a recorded counter (three layers, 300 steps, 24 s) through the same code that a live run takes."""
    world = World([30.0, 55.0, 12.0], [20.0, 35.0, 20.0], steps=300, seed=3)
    recording = world.recording(period_ms=10.0, modulus=MODULUS, start_uj=4_242_424)
    bounds = RunInterval(0, world.end_ns, 1_795_500_000_000_000_000)
    carbon = make_plan(CarbonOptions(region="FRA", pue=1.2), datetime(2026, 11, 24, tzinfo=UTC))
    asked = RunOptions(name="replayed", carbon=carbon, baseline_s=0.0)
    return build_report(RUN_ID, asked, bounds, recording, world.trace, RunOutcome("complete", units={"image": 9600.0}))


def walk(folder: Path) -> str:
    """Write the walk from a gram to a counter's reading, every number read from the files of a bundle."""
    bundle = write_bundle(report(), folder / "audit", seal=Seal(chain=folder / "chain.jsonl"))
    impact = row(bundle, "impact", subject="run", criterion="gwp")
    factors = [row(bundle, "factor", factor_id=name) for name in impact["factor_ids"].split(";")]
    run, device = row(bundle, "run"), row(bundle, "device", device_id="cpu:0")
    layer = row(bundle, "layer", fqn="layer1", phase="forward")
    number = {factor["kind"]: factor["value"] for factor in factors}
    grams = float(run["energy_it_j"]) / 3.6e6 * float(number["pue"]) * float(number["grid_gwp"])
    joules = sum(float(r["energy_self_j"]) for r in rows(bundle, "layer") if r["device_id"] == "cpu:0")
    share, per_call_j = (float(layer["energy_self_j"]) / float(n) for n in (device["energy_j"], layer["calls"]))
    raw = [int(device[f"counter_{name}"]) for name in ("end_raw", "start_raw", "wraps", "modulus_raw")]
    counted = raw[0] - raw[1] + raw[2] * raw[3]
    told = str(verify(bundle, chain=folder / "chain.jsonl", runs=folder)).replace(str(folder) + "/", "")
    sample = last_sample(bundle)
    counter = shown(device, "sensor", *(f"counter_{name}" for name in COUNTER))
    grid = next(factor for factor in factors if factor["kind"] == "grid_gwp")
    return f"""
**1. The gram.** Open `impact.csv`, the row with `subject` = `run` and `criterion` = `gwp`:

{shown(impact, "value", "unit", "formula", "factor_ids", "provenance", "weakest_input")}

**2. The factors.** Open `factor.csv` at the two `factor_ids`:

{shown(grid, "factor_id", "value", "unit", "zone", "data_year", "basis", "perspective", "source_name", "provenance")}

{shown(row(bundle, "factor", kind="pue"), "factor_id", "value", "unit", "source_name", "provenance")}

**3. The joules.** Open `run.csv`:

{shown(run, "energy_it_j", "energy_it_provenance", "boundary", "boundary_excluded")}

By hand: {run["energy_it_j"]} / 3.6e6 × {number["pue"]} × {number["grid_gwp"]} = {grams!r} g, the `value` of step 1.

**4. The meters.** `boundary` names the domains inside the total. Open `device.csv`, the row `cpu:0`:

{shown(device, "counted", "energy_j", "energy_u_j", "method", "provenance", "coverage_ratio")}

One domain counts, so its `energy_j` is the run's.

**5. The counter.** The same row holds the two readings between which the run lies, in the counter's own unit:

{counter}

By hand: {raw[0]} − {raw[1]} + {raw[2]} × {raw[3]} = {counted} units, × {device["counter_unit_j"]} J =
{counted * float(device["counter_unit_j"])!r} J. The meter's file said {raw[1]} at the start and {raw[0]} at the end;
`counter_gap_j` is what `energy_j` holds beyond these two readings.

**6. The curve.** The last row of `cpu:0` in `sample.parquet`: `t_ns` {sample[0]}, `energy_j` {sample[1]!r}. These
are the same joules, and between any two rows `power_w` is their slope.

**7. Who used them.** The rows of `layer.csv` with `device_id` = `cpu:0` add up to {joules!r} J. One of them:

{shown(layer, "fqn", "phase", "calls", *LAYER_ENERGY, "method", "provenance")}

By hand: {layer["energy_self_j"]} / {device["energy_j"]} = {share!r}, its
`energy_share`; {layer["energy_self_j"]} / {layer["calls"]} = {per_call_j!r} J, its `energy_per_call_j`.
Here the walk ends. The split between layers comes from a trace, which a bundle does not hold: no cell gives
`energy_self_j` again. Sums and powers bound it. [A table](#columns) says what is recomputed, what is bounded, and what
is the writer's word.

**8. All of it at once.** `torchwatt verify audit --chain chain.jsonl --runs .`:

```text
{told}
```
"""


def forged(folder: Path) -> str:
    """Write how an auditor meets a forger: each step is planted, sealed again and checked for real."""
    honest = write_bundle(report(), folder / "honest", samples="csv.gz")

    def said(name: str, *forgeries: tuple[defects.Spoil, str], **required: str) -> str:
        forger = Forger(honest)
        for spoil, variant in forgeries:
            spoil(forger, variant)
        text = str(verify(forger.reseal(folder / name), **required)).replace(str(folder) + "/", "")
        return f"```text\n{text}\n```"

    return f"""
**1. The factor.** He halves the grid's number in `factor.csv` and computes every gram again:

{said("forged-1", (defects.factor_changed_under_its_id, "value"))}

A factor's id is a hash of what its row says, so `factor.csv` contradicts itself.

**2. The formula.** He leaves the factor alone and writes another formula into the rows of `impact.csv`:

{said("forged-2", (defects.usage_by_another_formula, "energy_j/7.2e6*pue*grid_gwp"))}

The grams are what that formula gives. It is not the one that the schema fixes for these factors.

**3. The joules.** He takes a tenth off the joules of the package, and of every layer, hour, point and gram:

{said("forged-3", (defects.joules_away_from_the_counter, "0.9"))}

All tables agree with each other, and none with the two readings of the counter.

**4. The coverage.** To explain the missing joules he says that the meter was known for nine tenths of the run:

{said("forged-4", (defects.joules_away_from_the_counter, "0.9"), (defects.coverage_without_an_event, "0.9"))}

**5. Everything.** He writes other readings, too: half of the counter's units, and half of everything that follows:

{said("forged-5", (defects.everything_halved_with_its_readings, ""))}

Nothing contradicts anything: a run that was half as hungry has these very cells. This is what "anyone could have made
it" means. It ends where somebody else holds a key, or a head of the chain. The auditor asks for the key that the honest
bundles were signed with:

{said("forged-6", (defects.everything_halved_with_its_readings, ""), require_signature="SHA256:" + "A" * 43)}
"""


def rows(bundle: Path, table: str) -> list[dict[str, str]]:
    """Read a table as anybody would."""
    with (bundle / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(bundle: Path, table: str, **wanted: str) -> dict[str, str]:
    """Return the first row with these cells."""
    return next(r for r in rows(bundle, table) if wanted.items() <= r.items())


def shown(cells: dict[str, str], *names: str) -> str:
    """Show some cells of a row, one a line."""
    width = max(map(len, names))
    return "\n".join(["```text", *(f"{name:{width}}  {cells[name] or '(empty)'}" for name in names), "```"])


def last_sample(bundle: Path) -> tuple[int, float]:
    """Return the last point of the curve of `cpu:0`."""
    import pyarrow.parquet as pq

    table = pq.read_table(bundle / "sample.parquet").to_pydict()
    index = int(np.flatnonzero(np.array(table["device_id"]) == "cpu:0")[-1])
    return table["t_ns"][index], table["energy_j"][index]


def audit_markdown(page: str) -> str:
    """Put the walk into the page."""
    with tempfile.TemporaryDirectory() as name:
        made = {(BEGIN, END): walk(Path(name)), (FORGED_BEGIN, FORGED_END): forged(Path(name))}
    for (begin, end), text in made.items():
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        page = pattern.sub(lambda _, begin=begin, end=end, text=text: f"{begin}\n{text}\n{end}", page)  # type: ignore[misc]
    return page


def code_blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def run_readme(page: str, pictures: Path) -> str:
    """Run the Python blocks of the README as cells in JupyterLab; save the pictures and return what they print."""
    from playwright.sync_api import sync_playwright
    from tests.browser.conftest import CHROMIUM, choose_view, write
    from tests.notebook.lab import CHROMIUM_FLAGS, Lab, server

    os.environ["OMP_NUM_THREADS"] = (
        "1"  # of the kernel: threads that wait for each other on a busy machine take minutes
    )
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder, home = Path(name) / "notebooks", Path(name) / "home"
        folder.mkdir()
        home.mkdir()
        write(folder / "readme.ipynb", *code_blocks(page, "python"), "print('end')")
        with server(folder, home) as address:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_FLAGS))
            lab = Lab(browser, address, height=PICTURE_HEIGHT)
            lab.open("readme.ipynb")
            outputs = [output for cell in lab.run_all() for output in cell["outputs"]]
            failed = [output["evalue"] for output in outputs if output["output_type"] == "error"]
            if failed:
                raise RuntimeError(f"the README's cells fail: {failed}")
            for theme, picture in PICTURES.items():
                lab.theme(theme)
                measured = lab.page.locator(".jp-Notebook .jp-CodeCell").nth(MEASURED_CELL)
                measured.scroll_into_view_if_needed()
                lab.page.wait_for_timeout(1000)  # the chart is drawn again in the new colours
                measured.screenshot(path=pictures / picture)
            lab.theme("JupyterLab Light")
            for view, picture in VIEW_PICTURES.items():
                choose_view(lab.page, view)
                table = measured.locator(".tw-report .tw-layers-view").first
                table.evaluate("table => table.scrollIntoView({block: 'center'})")
                lab.page.wait_for_timeout(500)
                table.screenshot(path=pictures / picture)
            browser.close()
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return printed.removesuffix("end\n").rstrip()


def readme_markdown(page: str, printed: str) -> str:
    """Put what the cells print into the README."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n```text\n{printed}\n```\n{END}", page)


def main(chosen: Sequence[str]) -> None:
    """Write the chosen pages, all of them if none is chosen."""
    audit, readme = DOCS / "audit.md", DOCS.parent / "README.md"
    if "schema" in chosen or not chosen:
        (DOCS / "schema.md").write_text(schema_markdown(), encoding="utf-8", newline="\n")
    if "audit" in chosen or not chosen:
        audit.write_text(audit_markdown(audit.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    if "readme" in chosen or not chosen:
        page = readme.read_text(encoding="utf-8")
        printed = run_readme(page, DOCS / "images")
        readme.write_text(readme_markdown(page, printed), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
