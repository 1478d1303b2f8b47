"""The windows between the pages of a language model's server: their tokens, and their joules from the meters."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, fsum, isnan, log10
from threading import Event as Flag
from threading import Lock

import numpy as np

from torchwatt.core.errors import TorchwattError
from torchwatt.core.meter import Event, Severity
from torchwatt.core.report import INPUT_UNIT, OUTPUT_UNIT, REQUEST_UNIT, Report, Window
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.metrics.server_counters import STARTED, TIMEOUT_S, Labels, ServerPage

MODEL_LABEL = "model_name"
MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class _Change:
    """What changed from one page to the next; `code` says why tokens are unknown, if they are."""

    code: str = ""
    message: str = ""
    tokens: Mapping[str, tuple[float, float]] | None = None  # by model: input, output; None: unknown
    requests: float | None = None
    first_token_s: float = 0.0
    first_tokens: float = 0.0


def compare_pages(before: ServerPage, after: ServerPage) -> _Change:
    """Return the tokens counted between two pages; unknown after a restart, or where series appear or are gone."""
    kind = after.kind
    if kind != before.kind or before.values(STARTED) != after.values(STARTED):
        return _Change("SERVER_RESTART", f"a {kind.name} server has started")
    common = [key for key in before.series if key in after.series and key[0] in kind.counters]
    fallen = next((key for key in common if after.series[key] < before.series[key]), None)
    if fallen is not None:
        change = f"{fallen[0]} went from {before.series[fallen]:.17g} back to {after.series[fallen]:.17g}"
        return _Change("SERVER_RESTART", f"the server has started again: {change}")
    tokens = (kind.input, kind.output)
    gone = [key for key in before.series if key[0] in tokens and key not in after.series]
    new = [key for key in after.series if key[0] in tokens and key not in before.series]
    if gone or any(after.series[key] for key in new):
        change = " and ".join(f"{len(keys)} {word}" for keys, word in ((new, "new"), (gone, "gone")) if keys)
        example = dict((new or gone)[0][1])
        return _Change("SERVER_LABELS", f"series of the token counters changed ({change}, such as {example})")
    deltas = {key: after.series[key] - before.series[key] for key in common}
    counts: dict[str, tuple[float, float]] = {}
    for (name, labels), delta in deltas.items():
        if name in tokens:
            model = dict(labels).get(MODEL_LABEL, "")
            inputs, outputs = counts.get(model, (0.0, 0.0))
            counts[model] = (inputs + delta, outputs) if name == kind.input else (inputs, outputs + delta)
    note = ("SERVER_LABELS", f"{len(new)} new series of the token counters, at 0") if new else ("", "")
    requests = kind.requests if before.values(kind.requests).keys() == after.values(kind.requests).keys() else ""
    return _Change(
        *note,
        tokens=counts,
        requests=_sum_of(deltas, requests) if requests and before.values(requests) else None,
        first_token_s=_sum_of(deltas, f"{kind.first_token}_sum"),
        first_tokens=_sum_of(deltas, f"{kind.first_token}_count"),
    )


def _sum_of(deltas: Mapping[tuple[str, Labels], float], name: str) -> float:
    return fsum(delta for key, delta in deltas.items() if key[0] == name)


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Sums over the windows whose tokens and joules are known; `idle` ones had no request and no token."""

    input: float
    output: float
    energy_j: float | None
    time_s: float
    idle_j: float
    idle_s: float
    windows: int

    def per_output_j(self) -> float | None:
        """Return joules per output token; None without tokens or joules."""
        return self.energy_j / self.output if self.energy_j is not None and self.output > 0 else None

    def per_token_j(self) -> float | None:
        """Return joules per token, input and output; None without tokens or joules."""
        total = self.input + self.output
        return self.energy_j / total if self.energy_j is not None and total > 0 else None


def sum_windows(windows: Sequence[Window]) -> TokenSums:
    """Add up the windows whose tokens and joules are known."""
    counted = [w for w in windows if w.output_tokens is not None and w.energy_j is not None]
    idle = [w for w in counted if w.kind == "idle"]
    return TokenSums(
        fsum(w.input_tokens or 0.0 for w in counted),
        fsum(w.output_tokens or 0.0 for w in counted),
        fsum(w.energy_j or 0.0 for w in counted) if counted else None,
        sum(w.end_ns - w.start_ns for w in counted) / NS_PER_S,
        fsum(w.energy_j or 0.0 for w in idle),
        sum(w.end_ns - w.start_ns for w in idle) / NS_PER_S,
        len(counted),
    )


class ServerTally:
    """Windows between the pages of a server, with their tokens; one thread adds, others may read.

    Attributes:
        windows: Between consecutive pages, in time order; their joules are added by `book`.
        models: Input and output tokens by model.
        requests: Requests that ended; None if they are unknown, or not counted by the server.
        page: The latest page, and when it was made.
    """

    def __init__(self, start_ns: int, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.windows: list[Window] = []
        self.models: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self.requests: float | None = 0.0
        self.first_token_s = self.first_tokens = 0.0
        self.page: tuple[int, ServerPage] | None = None
        self.longest_s = 0.0  # that a page took
        self.events: list[Event] = []
        self._on_event = on_event
        self._start_ns, self._left_out, self._closed = start_ns, 0, False
        self._failures = 0  # attempts without a page since the latest one
        self._lock = Lock()

    def add_failure(self, t_ns: int, reason: str) -> None:
        """Record that there was no page."""
        with self._lock:
            if not self._closed:
                if not self._failures:
                    self._note(t_ns, "warning", "SERVER_SILENT", f"{reason}; tokens are unknown until there is a page")
                self._failures += 1

    def add_page(self, t_ns: int, page: ServerPage, took_s: float = 0.0) -> None:
        """Record a page and the window since the page before."""
        with self._lock:
            if self._closed or (self.page is not None and t_ns <= self.page[0]):
                return
            self.longest_s = max(self.longest_s, took_s)
            if self.page is None:
                names = f"{page.kind.input} and {page.kind.output}"
                self._note(t_ns, "info", "SERVER_COUNTERS", f"{page.kind.name} server: tokens by {names}")
            else:
                self._add_window(*self.page, t_ns, page)
            if self._failures:
                since_s = (t_ns - (self.page[0] if self.page is not None else self._start_ns)) / NS_PER_S
                text = (
                    f"the page is back; tokens of the {since_s:.3g} s before are unknown, {self._failures} reads failed"
                )
                self._note(t_ns, "warning", "SERVER_BACK", text)
            self._failures = 0
            self._note_digits(t_ns, page)
            self.page = t_ns, page

    def _add_window(self, start_ns: int, before: ServerPage, end_ns: int, page: ServerPage) -> None:
        change = compare_pages(before, page)
        if change.code:
            unknown = "" if change.tokens is not None else "; tokens since the page before are unknown"
            self._note(end_ns, "warning" if unknown else "info", change.code, change.message + unknown)
        if self._failures or change.tokens is None:
            name = "no page" if self._failures else change.code.lower().replace("_", " ")
            self.windows.append(Window(name, start_ns, end_ns, None, "other"))
            return
        inputs, outputs = (fsum(pair[i] for pair in change.tokens.values()) for i in (0, 1))
        is_idle = not inputs and not outputs and before.running == page.running == 0
        self.windows.append(
            Window(page.kind.name, start_ns, end_ns, None, "idle" if is_idle else "other", inputs, outputs)
        )
        for model, (model_read, model_made) in change.tokens.items():
            self.models[model] = self.models[model][0] + model_read, self.models[model][1] + model_made
        counted = self.requests is not None and change.requests is not None
        self.requests = (self.requests or 0.0) + (change.requests or 0.0) if counted else None
        self.first_token_s += change.first_token_s
        self.first_tokens += change.first_tokens

    def _note(self, t_ns: int, severity: Severity, code: str, message: str) -> None:
        if len(self.events) >= MAX_EVENTS:
            self._left_out += 1
            return
        self.events.append(Event(t_ns, severity, code, "run", message))
        self._on_event(self.events[-1])

    def _note_digits(self, t_ns: int, page: ServerPage) -> None:
        largest, digits = max(page.series.values(), default=0.0), page.kind.digits
        if digits is not None and largest >= 10**digits and not any(e.code == "TOKENS_ROUNDED" for e in self.events):
            step = 10 ** (floor(log10(largest)) - digits + 1)
            text = f"the page prints {digits} digits: from now on, tokens of a window may be off by {step} or more"
            self._note(t_ns, "warning", "TOKENS_ROUNDED", text)

    def close(self) -> None:
        """Ignore later pages and failures."""
        with self._lock:
            self._closed = True

    def book(self, report: Report, interval_s: float = 0.0) -> Report:
        """Return the report with windows that cover the run, their tokens and joules, and the events of the server.

        Each joule of the run is in one window, if the meters covered the run. A window whose tokens are unknown has
        joules and no tokens.
        """
        covering = list(_cover(self.windows, self.page, report))
        windows = [
            replace(window, energy_j=None if isnan(joules) else joules)
            for window, joules in zip(covering, _window_joules(covering, report), strict=True)
        ]
        between = [window for window in windows if window.output_tokens is not None]
        known_s, total_s = sum(w.end_ns - w.start_ns for w in between) / NS_PER_S, report.duration_s
        is_whole = between and len(between) == len(self.windows) and not self._failures
        reason = "" if is_whole else f"tokens are known for {known_s:.3g} s"
        units = {
            unit: fsum(counts[i] for counts in self.models.values()) for i, unit in enumerate((INPUT_UNIT, OUTPUT_UNIT))
        }
        if self.requests is not None:
            units[REQUEST_UNIT] = self.requests
        events = [*report.events, *self.events, *self._final_events(report, interval_s, reason)]
        return replace(
            report,
            windows=tuple(windows),
            units=units if between else {},
            events=tuple(sorted(events, key=lambda event: event.t_ns)),
            status="partial" if reason and report.status == "complete" else report.status,
            exit_reason=report.exit_reason or (f"{reason} of {total_s:.3g} s" if reason else ""),
        )

    def _final_events(self, report: Report, interval_s: float, reason: str) -> Iterator[Event]:
        def event(severity: Severity, code: str, message: str) -> Event:
            return Event(report.end_ns, severity, code, "run", message)

        if reason:
            text = f"{reason} of {report.duration_s:.3g} s: joules per token are those of the windows with tokens"
            yield event("warning", "TOKENS_PARTIAL", text)
        if interval_s and self.longest_s > interval_s / 2:
            text = f"a page took up to {self.longest_s:.3g} s: when its counters were read is known to half of that"
            yield event("info", "SERVER_SLOW", text)
        if self._left_out:
            yield event("info", "SERVER_EVENTS", f"{self._left_out} more events of the server are left out")
        for model, (inputs, outputs) in sorted(self.models.items()):
            text = f"{model or 'all models'}: {inputs:.17g} input, {outputs:.17g} output tokens"
            yield event("info", "SERVER_TOKENS", text)


def _cover(windows: Sequence[Window], page: tuple[int, ServerPage] | None, report: Report) -> Iterator[Window]:
    """Yield the windows, and those before the first page and after the last one."""
    first_ns = windows[0].start_ns if windows else page[0] if page is not None else report.end_ns
    last_ns = page[0] if page is not None else report.end_ns
    if first_ns > report.start_ns:
        yield Window("before the first page", report.start_ns, first_ns, None, "other")
    yield from windows
    if last_ns < report.end_ns:
        yield Window("after the last page", last_ns, report.end_ns, None, "other")


def _window_joules(windows: Sequence[Window], report: Report) -> list[float]:
    """Return the joules of each window, of all counted domains; NaN where one did not cover it."""
    counted = {ledger.domain for ledger in report.counted}
    curves = [curve for curve in report.curves if curve.domain in counted]
    if not curves or len(curves) < len(counted):
        return [float("nan")] * len(windows)
    start_ns, end_ns = (np.array([getattr(w, end) for w in windows], dtype=np.int64) for end in ("start_ns", "end_ns"))
    return [fsum(parts) for parts in zip(*(curve.parts_j(start_ns, end_ns).tolist() for curve in curves), strict=True)]


class ServerPoller:
    """Reads a page at a steady interval in a thread of its own, and adds it to a tally; and again when it is closed."""

    def __init__(
        self, read_page: Callable[[], ServerPage], tally: ServerTally, interval_s: float, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._read_page, self._tally = read_page, tally
        self._interval_s, self._timeout_s = interval_s, timeout_s
        self._end = Flag()
        self._thread = HelperThread(self._loop, "torchwatt-watch")

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def close(self) -> None:
        """Read a last page, and wait for it; later pages are ignored."""
        self._end.set()
        self._thread.join(2 * self._timeout_s)
        self._tally.close()

    def _loop(self) -> None:
        due_s = time.monotonic()
        while not self._end.is_set():
            self._scrape()
            due_s += self._interval_s * max(floor((time.monotonic() - due_s) / self._interval_s) + 1, 1)
            self._end.wait(max(due_s - time.monotonic(), 0.0))
        self._scrape()

    def _scrape(self) -> None:
        start_ns = time.monotonic_ns()
        try:
            page = self._read_page()
        except TorchwattError as error:
            self._tally.add_failure(time.monotonic_ns(), str(error))
        except Exception as error:  # a fault of ours must end in an event, not in a thread that stands still
            self._tally.add_failure(time.monotonic_ns(), f"{type(error).__name__}: {error}")
        else:
            end_ns = time.monotonic_ns()
            self._tally.add_page((start_ns + end_ns) // 2, page, (end_ns - start_ns) / NS_PER_S)
