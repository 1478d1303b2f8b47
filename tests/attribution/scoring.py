"""Compare a ledger with the truth of the simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.device_fit import NO_PRIORS
from torchwatt.attribution.run_attribution import attribute_recording
from torchwatt.core.ledger import Ledger
from torchwatt.core.terms import IDLE, Slot


@dataclass(frozen=True)
class Score:
    """Energy-weighted relative errors of all classes and of the ten largest; `time_share` the same for time share."""

    ew: float
    top10: float
    time_share: float
    inside: float  # share of 90 % systematic bands that hold the truth
    z_rms: float
    fitted: bool
    total_rel: float  # metered against true
    balance_rel: float  # parts against metered
    ledger: Ledger


def attributed(simulated, known=NO_PRIORS):
    found = attribute_recording(simulated.recording, simulated.trace, simulated.start_ns, simulated.end_ns, known)
    assert len(found.ledgers) == 1, found.unavailable
    return found


def score(simulated, known=NO_PRIORS) -> Score:
    ledger = attributed(simulated, known).ledgers[0]
    rows = {Slot(e.fqn, e.phase): e for e in ledger.entries}
    slots = [s for s, j in simulated.truth_j.items() if j > 0]
    truth = np.array([simulated.truth_j[s] for s in slots])
    found = np.array([rows[s].energy_self_j if s in rows else 0.0 for s in slots])
    low = np.array([rows[s].energy_systematic_lo_j for s in slots])
    high = np.array([rows[s].energy_systematic_hi_j for s in slots])
    time_s = np.array([rows[s].time_self_s for s in slots])
    # Time share as a stranger would do it: the metered joules less the true idle ones, by time.
    idle = rows.get(Slot(IDLE, "other"))
    busy_j = ledger.energy_j - simulated.idle_w * (idle.time_self_s if idle is not None else 0.0)
    shared = busy_j * time_s / time_s.sum()
    top = np.argsort(-truth)[:10]
    off = np.abs(found - truth)
    parts = np.array([e.energy_self_j for e in ledger.entries])
    return Score(
        ew=float(off.sum() / truth.sum()),
        top10=float(off[top].sum() / truth[top].sum()),
        time_share=float(np.abs(shared - truth).sum() / truth.sum()),
        inside=float(((truth >= low) & (truth <= high)).mean()),
        z_rms=float(np.sqrt(np.mean(((found - truth) / np.maximum((high - low) / 3.29, 1e-12)) ** 2))),
        fitted=any(e.method == "fit" for e in ledger.entries),
        total_rel=abs(ledger.energy_j / simulated.total_j - 1),
        balance_rel=abs(parts.sum() / ledger.energy_j - 1),
        ledger=ledger,
    )
