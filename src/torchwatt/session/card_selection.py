"""Matches cards of a power log to the devices of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event, Meter, Recording
from torchwatt.sensors.logs.cards import Card, picked, renamed
from torchwatt.tracing.traces import Joined

_SHOWN = 16


def select_cards(
    log: Recording, joined: Sequence[Joined], wanted: Sequence[str]
) -> tuple[Recording, tuple[Event, ...]]:
    """Return the readings of the trace's devices under the trace's names, without cards that are not part of the run.

    A single card is assigned to a single device. Several are matched by model name if the names are unique, or by
    index if log and trace have the same indices. A single device in a log with several cards cannot be matched by
    index, because CUDA numbers only the visible cards.

    Args:
        log: One meter for each card.
        joined: The traces.
        wanted: Cards in the order of the trace's devices; empty to match automatically.

    Raises:
        ConfigError: A device's card is ambiguous; the message lists the cards and names the option.
    """
    devices = sorted({activity.device for one in joined for activity in one.activities}, key=_number)
    names = {device: name for one in joined for device, name in one.device_names if device in devices}
    if not devices:
        return log, ()
    if wanted:
        cards = _picked(log.meters, devices, wanted)
        return renamed(log, cards), _others(log, cards)
    if len(devices) == 1 and len(log.meters) == 1:
        return renamed(log, {devices[0]: log.meters[0]}), ()
    named = _by_name(log.meters, devices, names)
    if named is not None:
        return renamed(log, named), _others(log, named)
    indexed = {f"gpu:{index}": meter for meter in log.meters if (index := meter.fact("index"))}
    if len(devices) > 1 and sorted(indexed) == sorted(devices) and len(indexed) == len(log.meters):
        message = (
            "cards of the power log are matched to the trace's devices by index: where CUDA_VISIBLE_DEVICES orders "
            "them otherwise, --device says how"
        )
        return renamed(log, indexed), (Event(0, "info", "CARDS_BY_INDEX", "run", message),)
    raise ConfigError(_cannot_tell(log, devices))


def cards_at_rest(rest: Recording, meters: Sequence[Meter]) -> Recording:
    """Return a log of idle cards under the names of the run's cards.

    Raises:
        ConfigError: The log has several cards, and one of the run's is not among them exactly once.
    """
    if len(rest.meters) == len(meters) == 1:
        return renamed(rest, {str(meters[0].domain): rest.meters[0]})
    cards = {}
    for meter in meters:
        mine = Card.of(meter)
        same = [one for one in rest.meters if _same(mine, Card.of(one))]
        if len(same) != 1:
            known = "; ".join(Card.of(one).text for one in rest.meters)
            raise ConfigError(f"the log of idle power does not have card {mine.text} once; it has: {known}")
        cards[str(meter.domain)] = same[0]
    return renamed(rest, cards)


def _same(one: Card, other: Card) -> bool:
    for mine, theirs in ((one.uuid, other.uuid), (one.bus_id, other.bus_id), (one.index, other.index)):
        if mine and theirs:
            return mine == theirs and (not one.host or not other.host or one.host == other.host)
    return False


def _picked(meters: Sequence[Meter], devices: Sequence[str], wanted: Sequence[str]) -> dict[str, Meter]:
    """Map devices to the cards that the user named: one per device, or one per CUDA index."""
    if len(wanted) == len(devices):
        cards = {device: picked(meters, name) for device, name in zip(devices, wanted, strict=True)}
    elif all(_number(device) < len(wanted) for device in devices):
        cards = {device: picked(meters, wanted[_number(device)]) for device in devices}
    else:
        raise ConfigError(
            f"--device names {len(wanted)} cards, the trace holds {', '.join(devices)}: name one for each of them"
        )
    if len({id(meter) for meter in cards.values()}) < len(cards):
        raise ConfigError("--device names one card twice")
    return cards


def _by_name(meters: Sequence[Meter], devices: Sequence[str], names: Mapping[str, str]) -> dict[str, Meter] | None:
    """Match by model name; None unless each device's model is that of exactly one card."""
    cards = {}
    for device in devices:
        same = [meter for meter in meters if names.get(device) and meter.fact("name") == names[device]]
        if len(same) != 1:
            return None
        cards[device] = same[0]
    return cards if len({id(meter) for meter in cards.values()}) == len(cards) else None


def _others(log: Recording, cards: Mapping[str, Meter]) -> tuple[Event, ...]:
    used = {id(meter) for meter in cards.values()}
    others = [Card.of(meter).text for meter in log.meters if id(meter) not in used]
    if not others:
        return ()
    several = (
        f"{len(others)} other cards of the power log are" if len(others) > 1 else "another card of the power log is"
    )
    message = f"{several} not in the total: {_listed(others)}"
    return (Event(0, "info", "OTHER_CARDS", "run", message),)


def _cannot_tell(log: Recording, devices: Sequence[str]) -> str:
    cards = [f"{Card.of(meter).text} ({_mean_w(log, meter)})" for meter in log.meters]
    several = f"{len(cards)} cards" if len(cards) > 1 else "one card"
    return (
        f"the power log has {several}, and which is {' and which '.join(devices)} cannot be told, for "
        "CUDA_VISIBLE_DEVICES may have numbered them otherwise: give --device with an index, uuid or bus id for each; "
        f"found: {_listed(cards)}"
    )


def _listed(texts: Sequence[str]) -> str:
    rest = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + rest


def _mean_w(log: Recording, meter: Meter) -> str:
    power = log.get(f"{meter.domain}/power")
    return "no power" if power is None else f"{float(np.mean(power.raw)):.4g} W"


def _number(device: str) -> int:
    return int(device.partition(":")[2])
