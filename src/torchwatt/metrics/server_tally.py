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
from torchwatt.metrics.server_counters import STARTED, Labels, ServerPage

MODEL_LABEL = "model_name"
MAX_EVENTS = 200
LAST_PAGE_S = 3.0  # longest wait for it


@dataclass(frozen=True, slots=True)
class PageChange:
    """What changed from one page to the next; `code` is of an event, if there is one."""

    code: str = ""
    message: str = ""
    tokens: Mapping[str, tuple[float, float]] | None = None  # by model: input, output; None: unknown
    cached: float = 0.0  # of the input tokens
    requests: float = 0.0
    first_token_s: float = 0.0
    first_tokens: float = 0.0


def compare_pages(before: ServerPage, after: ServerPage) -> PageChange:
    """Return the tokens counted between two pages; unknown after a restart, or where series are gone.

    A series that appears was at 0 before, as series with labels begin with what they first count.
    """
    kind = after.kind
    if kind != before.kind or before.values(STARTED) != after.values(STARTED):
        return PageChange("SERVER_RESTART", f"a {kind.name} server has started")
    counted = [key for key in after.series if key[0] in kind.counters]
    fallen = next((key for key in counted if after.series[key] < before.series.get(key, 0.0)), None)
    if fallen is not None:
        change = f"{fallen[0]} went from {before.series[fallen]:.17g} back to {after.series[fallen]:.17g}"
        return PageChange("SERVER_RESTART", f"the server has started again: {change}")
    if not after.has_counts:
        has_ended = before.has_counts
        return PageChange("SERVER_RESTART", "the server has started again: no counters") if has_ended else PageChange()
    tokens = (*kind.inputs, kind.output)
    gone = [key for key in before.series if key[0] in tokens and key not in after.series]
    if gone:
        text = f"{len(gone)} series of the token counters are gone, such as {_labels(gone[0])}"
        return PageChange("SERVER_LABELS", text)
    deltas = {key: after.series[key] - before.series.get(key, 0.0) for key in counted}
    counts: dict[str, tuple[float, float]] = {}
    for (name, labels), delta in deltas.items():
        if name in tokens:
            model = dict(labels).get(MODEL_LABEL, "")
            inputs, outputs = counts.get(model, (0.0, 0.0))
            counts[model] = (inputs, outputs + delta) if name == kind.output else (inputs + delta, outputs)
    new = [key for key in deltas if key[0] in tokens and key not in before.series] if before.has_counts else []
    text = f"{len(new)} new series of the token counters, such as {_labels(new[0])}: counted from 0" if new else ""
    return PageChange(
        "SERVER_LABELS" if new else "",
        text,
        tokens=counts,
        cached=_sum_of(deltas, kind.cached),
        requests=_sum_of(deltas, kind.requests),
        first_token_s=_sum_of(deltas, f"{kind.first_token}_sum"),
        first_tokens=_sum_of(deltas, f"{kind.first_token}_count"),
    )


def _labels(key: tuple[str, Labels]) -> str:
    return f"{key[0]}{{{', '.join(f'{name}={value}' for name, value in sorted(key[1]))}}}"


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
        page: The latest page, and when it was made.
    """

    def __init__(self, start_ns: int, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.windows: list[Window] = []
        self.models: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._requests = self._cached = 0.0
        self.first_token_s = self.first_tokens = 0.0
        self.page: tuple[int, ServerPage] | None = None
        self.longest_s = 0.0  # that a page took
        self.events: list[Event] = []
        self._on_event = on_event
        self._start_ns, self._left_out, self._closed = start_ns, 0, False
        self._failures = 0  # attempts without a page since the latest one
        self._first_running: float | None = None
        self._lock = Lock()

    @property
    def requests(self) -> float | None:
        """Return the requests that ended; None if the server does not count them."""
        return self._requests if self.page is not None and self.page[1].values(self.page[1].kind.requests) else None

    @property
    def cached(self) -> float | None:
        """Return the input tokens from a cache; None if the server does not count them."""
        return self._cached if self.page is not None and self.page[1].values(self.page[1].kind.cached) else None

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
            if self._failures:
                since_s = (t_ns - (self.page[0] if self.page is not None else self._start_ns)) / NS_PER_S
                is_same = self.page is not None and _is_same_process(self.page[1], page)
                reason = "known, since its process is the same" if is_same else "unknown"
                text = f"{self._failures} reads failed; tokens of the {since_s:.3g} s before are {reason}"
                self._note(t_ns, "warning", "SERVER_BACK", f"the page is back: {text}")
            if self.page is None:
                self._first_running = page.running
                self._note(t_ns, "info", "SERVER_COUNTERS", _counters_text(page))
            else:
                self._add_window(*self.page, t_ns, page)
            self._failures = 0
            self._note_digits(t_ns, page)
            self.page = t_ns, page

    def _add_window(self, start_ns: int, before: ServerPage, end_ns: int, page: ServerPage) -> None:
        change = compare_pages(before, page)
        if change.code:
            unknown = "" if change.tokens is not None else "; tokens since the page before are unknown"
            self._note(end_ns, "warning" if unknown else "info", change.code, change.message + unknown)
        is_silent = self._failures > 0 and not _is_same_process(before, page)
        if is_silent or change.tokens is None:
            name = "no page" if self._failures else change.code.lower().replace("_", " ") or "no counters"
            self.windows.append(Window(name, start_ns, end_ns, None, "other"))
            return
        inputs, outputs = (fsum(pair[i] for pair in change.tokens.values()) for i in (0, 1))
        is_idle = not inputs and not outputs and before.running == page.running == 0
        self.windows.append(
            Window(page.kind.name, start_ns, end_ns, None, "idle" if is_idle else "other", inputs, outputs)
        )
        for model, (model_read, model_made) in change.tokens.items():
            self.models[model] = self.models[model][0] + model_read, self.models[model][1] + model_made
        self._requests += change.requests
        self._cached += change.cached
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
        units = {  # of the whole run: the report divides its joules by them
            unit: fsum(counts[i] for counts in self.models.values()) for i, unit in enumerate((INPUT_UNIT, OUTPUT_UNIT))
        }
        if self.requests is not None:
            units[REQUEST_UNIT] = self.requests
        events = [*report.events, *self.events, *self._final_events(report, interval_s, reason)]
        return replace(
            report,
            windows=tuple(windows),
            units=units if is_whole else {},
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
        if text := self._edge_text():
            yield event("warning", "TOKENS_EDGE", text)
        if interval_s and self.longest_s > interval_s / 2:
            text = f"a page took up to {self.longest_s:.3g} s: when its counters were read is known to half of that"
            yield event("info", "SERVER_SLOW", text)
        if self._left_out:
            yield event("info", "SERVER_EVENTS", f"{self._left_out} more events of the server are left out")
        for model, (inputs, outputs) in sorted(self.models.items()):
            text = f"{model or 'all models'}: {inputs:.17g} input, {outputs:.17g} output tokens"
            yield event("info", "SERVER_TOKENS", text)

    def _edge_text(self) -> str:
        """Return which requests have their tokens, and not all of their joules, in the run, and the other way round."""
        if self.page is None or not self.page[1].kind.counts_at_end:
            return ""
        at_first, at_last = self._first_running or 0.0, self.page[1].running or 0.0
        if not at_first + at_last:
            return ""
        counting = f"{self.page[1].kind.name} counts output tokens when a request ends"
        running = f"{at_first:g} ran at the first page and {at_last:g} at the last one"
        return f"{counting}; {running}: their joules are partly in the run, their tokens wholly or not at all"


def _is_same_process(before: ServerPage, after: ServerPage) -> bool:
    """Return whether both pages say that the server started at the same time; not every server says when."""
    return bool(after.values(STARTED)) and before.values(STARTED) == after.values(STARTED)


def _counters_text(page: ServerPage) -> str:
    kind = page.kind
    text = f"{kind.name} server: tokens by {' + '.join(kind.inputs)} and {kind.output}"
    if not page.has_counts:
        return f"{text}, which are not on its page yet: tokens are known from its first request on"
    if kind.cached_apart and not page.values(kind.cached):
        return f"{kind.name} server: tokens by {kind.input}, which lacks those from its cache, and {kind.output}"
    return text


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
    """Reads a page at a steady interval in a thread, and adds it to a tally; and once more when it is closed."""

    def __init__(self, read_page: Callable[[], ServerPage], tally: ServerTally, interval_s: float) -> None:
        self._read_page, self._tally, self._interval_s = read_page, tally, interval_s
        self._end = Flag()
        self._thread = HelperThread(self._loop, "torchwatt-watch")

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def close(self) -> None:
        """Read a last page, and wait for it for a few seconds; later pages are ignored."""
        self._end.set()
        try:
            self._thread.join(LAST_PAGE_S)
        finally:
            if self._thread.is_alive():
                self._tally.add_failure(time.monotonic_ns(), "no last page in time")
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
