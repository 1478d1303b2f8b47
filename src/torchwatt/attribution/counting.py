"""Find the domains that make up the total of a running session, before its report."""

from __future__ import annotations

from collections.abc import Mapping

from torchwatt.attribution.device_users import Use
from torchwatt.attribution.modules import INSIDE
from torchwatt.attribution.scopes import compare, covering_groups
from torchwatt.core.meter import Recording


def counting(recording: Recording, used: Mapping[str, Use], *, early: bool = False) -> dict[str, str]:
    """Return the domains whose meters count, each with its name in the report.

    The counter of a superchip's GPU stands for `module:<n>`; domains inside a module, and devices of other processes,
    are left out; with `early` also a GPU whose counter's scope is not known yet, and domains that would be inside.
    """
    meters = [m for m in recording.meters if any(c.quantity != "gauge" for c in m.channels)]
    names = {str(meter.domain): str(meter.domain) for meter in meters}
    scopes = {
        str(m.domain): compared.scope for m in meters if m.domain.kind == "gpu" and (compared := compare(m, recording))
    }
    groups = covering_groups([m for m in meters if scopes.get(str(m.domain)) == "module"], recording)
    for index, group in enumerate(groups):
        for meter in group:
            del names[str(meter.domain)]
        names[str(group[0].domain)] = f"module:{index}"
    unsure = {name for name, scope in scopes.items() if scope == "unknown"} if early else set()
    out = unsure | {name for name, use in used.items() if use.user == "others" and scopes.get(name) != "module"}
    out |= {str(meter.domain) for meter in meters if (groups or unsure) and meter.domain.kind in INSIDE}
    return {domain: name for domain, name in names.items() if domain not in out}
