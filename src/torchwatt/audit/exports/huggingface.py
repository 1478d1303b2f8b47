"""`co2_eq_emissions` for a Hugging Face model card, in grams (many public cards have kilograms there)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torchwatt.audit.exports.cells import counted, factors_of, impact, number, of_kind, text
from torchwatt.audit.reader import Bundle
from torchwatt.core.errors import BundleError

_STAGES = {"pretraining": "pre-training", "finetuning": "fine-tuning"}


def card_yaml(bundles: Sequence[Bundle]) -> bytes:
    """Return the block for the front matter of a card.

    Raises:
        BundleError: The run has no grams.
    """
    (bundle,) = bundles
    grams = impact(bundle, "gwp")
    if grams is None:
        raise BundleError("this run has no grams (no region was named): use `torchwatt reprice` first")
    run = bundle.run
    grid = of_kind(factors_of(bundle, grams), "grid_gwp")
    about = f"torchwatt {text(run, 'tool_version')}, energy {text(run, 'energy_it_provenance')}"
    if grid is not None:
        year = text(grid, "data_year")
        about += f"; grid {text(grid, 'source_name')}{f' {year}' if year else ''} ({text(grid, 'basis')})"
    models = sorted({text(row, "model") for row in counted(bundle, "gpu", "cpu") if text(row, "model")})
    fields = {
        "emissions": repr(number(grams, "value")),
        "source": json.dumps(about, ensure_ascii=False),
        "training_type": _quoted(_STAGES.get(text(run, "lifecycle_stage"), "")),
        "geographical_location": _quoted(text(run, "zone")),
        "hardware_used": _quoted(", ".join(models)),
    }
    lines = ["co2_eq_emissions:  # grams of CO2e, location-based, use phase"]
    lines += [f"  {name}: {value}" for name, value in fields.items() if value]
    return ("\n".join(lines) + "\n").encode()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""
