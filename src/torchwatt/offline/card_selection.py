"""Matches cards of a power log to the devices of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event, Meter, Recording
from torchwatt.kineto import JoinedTrace
from torchwatt.sensors.logs.log_cards import LogCard, select_card, select_log_cards

_MAX_LISTED = 16


def select_cards(
    log: Recording, joined: Sequence[JoinedTrace], card_names: Sequence[str]
) -> tuple[Recording, tuple[Event, ...]]:
    """Return the readings of the trace's devices under the trace's names, without cards that are not part of the run.

    A single card is assigned to a single device. Several are matched by model name if the names are unique, or by
    index if log and trace have the same indices. A single device in a log with several cards cannot be matched by
    index, because CUDA numbers only the visible cards.

    Args:
        log: One meter for each card.
        joined: The traces.
        card_names: Cards in the order of the trace's devices; empty to match automatically.

    Raises:
        ConfigError: A device's card is ambiguous; the message lists the cards and names the option.
    """
    devices = sorted({activity.device for trace in joined for activity in trace.activities}, key=_device_number)
    names = {device: name for trace in joined for device, name in trace.device_names if device in devices}
    if not devices:
        return log, ()
    if card_names:
        cards = _cards_by_option(log.meters, devices, card_names)
        return select_log_cards(log, cards), _unused_card_events(log, cards)
    if len(devices) == 1 and len(log.meters) == 1:
        return select_log_cards(log, {devices[0]: log.meters[0]}), ()
    named = _cards_by_model(log.meters, devices, names)
    if named is not None:
        return select_log_cards(log, named), _unused_card_events(log, named)
    indexed = {f"gpu:{index}": meter for meter in log.meters if (index := meter.fact("index"))}
    if len(devices) > 1 and sorted(indexed) == sorted(devices) and len(indexed) == len(log.meters):
        message = (
            "cards of the power log are matched to the trace's devices by index; give --device if CUDA_VISIBLE_DEVICES "
            "ordered them otherwise"
        )
        return select_log_cards(log, indexed), (Event(0, "info", "CARDS_BY_INDEX", "run", message),)
    raise ConfigError(_ambiguity_message(log, devices))


def match_idle_cards(idle_log: Recording, meters: Sequence[Meter]) -> Recording:
    """Return a log of idle cards under the names of the run's cards.

    Raises:
        ConfigError: The log has several cards, and one of the run's is not among them exactly once.
    """
    if len(idle_log.meters) == len(meters) == 1:
        return select_log_cards(idle_log, {str(meters[0].domain): idle_log.meters[0]})
    cards = {}
    for meter in meters:
        mine = LogCard.of(meter)
        same = [idle_meter for idle_meter in idle_log.meters if _is_same_card(mine, LogCard.of(idle_meter))]
        if len(same) != 1:
            logged_cards = "; ".join(LogCard.of(idle_meter).text for idle_meter in idle_log.meters)
            raise ConfigError(f"the log of idle power does not have card {mine.text} once; it has: {logged_cards}")
        cards[str(meter.domain)] = same[0]
    return select_log_cards(idle_log, cards)


def _is_same_card(card: LogCard, candidate: LogCard) -> bool:
    for mine, theirs in ((card.uuid, candidate.uuid), (card.bus_id, candidate.bus_id), (card.index, candidate.index)):
        if mine and theirs:
            return mine == theirs and (not card.host or not candidate.host or card.host == candidate.host)
    return False


def _cards_by_option(meters: Sequence[Meter], devices: Sequence[str], card_names: Sequence[str]) -> dict[str, Meter]:
    """Map devices to the cards that the user named: one per device, or one per CUDA index."""
    if len(card_names) == len(devices):
        cards = {device: select_card(meters, name) for device, name in zip(devices, card_names, strict=True)}
    elif all(_device_number(device) < len(card_names) for device in devices):
        cards = {device: select_card(meters, card_names[_device_number(device)]) for device in devices}
    else:
        raise ConfigError(
            f"--device names {len(card_names)} cards, and the trace has {', '.join(devices)}: name one card per device"
        )
    if len({id(meter) for meter in cards.values()}) < len(cards):
        raise ConfigError("--device names one card twice")
    return cards


def _cards_by_model(
    meters: Sequence[Meter], devices: Sequence[str], names: Mapping[str, str]
) -> dict[str, Meter] | None:
    """Match by model name; None unless each device's model is that of exactly one card."""
    cards = {}
    for device in devices:
        same = [meter for meter in meters if names.get(device) and meter.fact("name") == names[device]]
        if len(same) != 1:
            return None
        cards[device] = same[0]
    return cards if len({id(meter) for meter in cards.values()}) == len(cards) else None


def _unused_card_events(log: Recording, cards: Mapping[str, Meter]) -> tuple[Event, ...]:
    used = {id(meter) for meter in cards.values()}
    unused_cards = [LogCard.of(meter).text for meter in log.meters if id(meter) not in used]
    if not unused_cards:
        return ()
    several = (
        f"{len(unused_cards)} other cards of the power log are"
        if len(unused_cards) > 1
        else "another card of the power log is"
    )
    message = f"{several} not in the total: {_list_texts(unused_cards)}"
    return (Event(0, "info", "OTHER_CARDS", "run", message),)


def _ambiguity_message(log: Recording, devices: Sequence[str]) -> str:
    cards = [f"{LogCard.of(meter).text} ({_mean_w(log, meter)})" for meter in log.meters]
    several = f"{len(cards)} cards" if len(cards) > 1 else "one card"
    return (
        f"the power log has {several}, and which of them is {' or '.join(devices)} is ambiguous, because "
        "CUDA_VISIBLE_DEVICES may have numbered them otherwise: give --device with an index, uuid or bus id for each; "
        f"found: {_list_texts(cards)}"
    )


def _list_texts(texts: Sequence[str]) -> str:
    count_note = f"; and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return "; ".join(texts[:_MAX_LISTED]) + count_note


def _mean_w(log: Recording, meter: Meter) -> str:
    power = log.get(f"{meter.domain}/power")
    return "no power" if power is None else f"{float(np.mean(power.raw)):.4g} W"


def _device_number(device: str) -> int:
    return int(device.partition(":")[2])
