"""Rebuilds the recording from a journal."""

from __future__ import annotations

from dataclasses import asdict, replace

from torchwatt.core.meter import Channel, Event, Recording, SamplerStats, Series, Unavailable
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import gather
from torchwatt.sensors.board import Note
from torchwatt.session.journal.read import Found, anchors, columns
from torchwatt.session.journal.told import Notes


def recorded(content: Found) -> Recording:
    """Return the readings, events and counts of a journal as the sampler would have returned them."""
    channels = [channel for meter in content.head.meters for channel in meter.channels]
    series = tuple(_series(channel, content) for channel in channels)
    notes = content.notes or Notes()
    noted = tuple(Note(**asdict(note)) for note in notes.notes)
    pairs = tuple(anchors(content)) or ((content.head.mono_ns, content.head.unix_ns),)
    mode = content.state.mode if content.state.mode in {"process", "thread", "replay"} else "none"
    return Recording(
        content.head.meters,
        series,
        tuple(dict.fromkeys((*content.head.unavailable, *content.state.unavailable, *_silent(series, notes, noted)))),
        _events(content, series, noted, pairs),
        pairs,
        SamplerStats(
            mode,  # type: ignore[arg-type]  # one of them by now
            notes.cpu_ns / NS_PER_S,
            (pairs[-1][0] - pairs[0][0]) / NS_PER_S,
            notes.reads,
            notes.missed,
        ),
    )


def _series(channel: Channel, content: Found) -> Series:
    blocks = content.blocks.get(channel.key, [])
    period_ns = next((b.period_ns for b in reversed(blocks) if b.period_ns > 0), channel.period_ns)
    return Series(replace(channel, period_ns=period_ns), *columns(blocks))


def _events(
    content: Found, series: tuple[Series, ...], noted: tuple[Note, ...], pairs: tuple[tuple[int, int], ...]
) -> tuple[Event, ...]:
    """Merge the events of both files: the sampler's own notes are newer than the owner's copies of them."""
    again = (*gather.events(noted), *gather.clock_steps(pairs), *gather.throttling(series))
    newer = {(event.code, event.subject) for event in again}
    older = (e for e in content.state.events if (e.code, e.subject) not in newer)
    return tuple(sorted((*older, *again), key=lambda event: event.t_ns))


def _silent(series: tuple[Series, ...], notes: Notes, noted: tuple[Note, ...]) -> tuple[Unavailable, ...]:
    since = {s.channel.key: _Failing(notes.failing_ns.get(s.channel.key, 0)) for s in series}
    return gather.silent(series, since, noted)  # type: ignore[arg-type]  # of a ring it asks one word


class _Failing:
    def __init__(self, since_ns: int) -> None:
        self._since_ns = since_ns

    def word(self, _: int) -> int:
        return self._since_ns
