"""Token counters of a language model's server, from its Prometheus page."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from math import fsum, isfinite
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from torchwatt.core.errors import ConfigError, TorchwattError, import_optional

STARTED = "process_start_time_seconds"  # a gauge of many Python servers: it changes when the server starts again
MAX_PAGE_BYTES = 1 << 22  # of a response; a page of vLLM has 100 kB
MAX_SERIES, MAX_LINE_CHARS = 4_096, 1 << 14  # of the counters that are read
MAX_COUNT = 2**53
TIMEOUT_S = 10.0  # for a whole page
CHUNK_BYTES = 1 << 16
_NAME = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)[\s{]")
Labels = frozenset[tuple[str, str]]


class ScrapeError(TorchwattError):
    """There is no page, or it has no counters of a known server."""


@dataclass(frozen=True, slots=True)
class ServerKind:
    """Names of a server's samples, and what its counters mean.

    Attributes:
        cached: Counter of the prompt tokens that came from a cache.
        first_token: Histogram of seconds.
        running: Gauge of requests.
        prefix: With which the names of all its samples begin.
        cached_apart: Its counter of input tokens is without those from the cache.
        counts_at_end: A request's tokens are counted when it ends, not while they are made.
        digits: Significant digits of the numbers on its page, if they are too few for every count.
    """

    name: str
    input: str
    output: str
    requests: str = ""
    running: str = ""
    first_token: str = ""
    cached: str = ""
    prefix: str = ""
    cached_apart: bool = False
    counts_at_end: bool = False
    digits: int | None = None

    @property
    def counters(self) -> tuple[str, ...]:
        """Return the names of samples that never decrease while the server runs."""
        first_token = (f"{self.first_token}_sum", f"{self.first_token}_count") if self.first_token else ()
        return tuple(filter(None, (self.input, self.output, self.cached, self.requests, *first_token)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the counters that add up to the tokens of prompts, those from a cache included."""
        return (self.input, self.cached) if self.cached_apart else (self.input,)


# vLLM counts prompts at their first token and output as it is made, SGLang both when a request ends; their labels, and
# TGI's counters, appear with the first request. TGI counts a prompt when it arrives.
SERVER_KINDS = (
    ServerKind(
        "vLLM", "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
        "vllm:num_requests_running", "vllm:time_to_first_token_seconds", "vllm:prompt_tokens_cached_total", "vllm:",
    ),
    ServerKind(
        "SGLang", "sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:num_requests_total",
        "sglang:num_running_reqs", "sglang:time_to_first_token_seconds", "sglang:cached_tokens_total", "sglang:",
        counts_at_end=True,
    ),
    ServerKind(
        "TGI", "tgi_request_input_length_sum", "tgi_request_generated_tokens_sum", "tgi_request_success",
        "tgi_batch_current_size", prefix="tgi_", counts_at_end=True,
    ),
    # `std::ostream` prints six digits.
    ServerKind(
        "llama.cpp", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total",
        running="llamacpp:requests_processing", cached="llamacpp:prompt_tokens_cached_total", prefix="llamacpp:",
        cached_apart=True, counts_at_end=True, digits=6,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServerPage:
    """The samples of one page that matter here, by name and labels."""

    kind: ServerKind
    series: Mapping[tuple[str, Labels], float]

    def values(self, name: str) -> dict[Labels, float]:
        """Return a sample's values by labels."""
        return {labels: value for (each, labels), value in self.series.items() if each == name}

    @property
    def running(self) -> float | None:
        """Return the requests that run; None if the page does not say it."""
        values = self.values(self.kind.running)
        return fsum(values.values()) if values else None

    @property
    def has_counts(self) -> bool:
        """Return whether there are token counters; some servers have them from their first request on."""
        return any(name in {self.kind.input, self.kind.output} for name, _ in self.series)


def parse_page(text: str, kinds: Sequence[ServerKind] = SERVER_KINDS) -> ServerPage:
    """Return the counters of a page in Prometheus' text format.

    A known server that has counted nothing yet may have no counters on its page; others must have both.

    Raises:
        ScrapeError: The page is not one of exactly one of the servers, or a line of the counters cannot be read.
        MissingPackageError: prometheus_client is not installed.
    """
    parser = import_optional("prometheus_client.parser", "torchwatt watch")
    names = {name for kind in kinds for name in (*kind.counters, kind.running) if name} | {STARTED}
    named_lines = [(match[1], line) for line in text.split("\n") if (match := _NAME.match(line))]
    lines = [line for name, line in named_lines if name in names]
    if len(lines) > MAX_SERIES or any(len(line) > MAX_LINE_CHARS for line in lines):
        raise ScrapeError(f"more than {MAX_SERIES} token counters, or one with more than {MAX_LINE_CHARS} characters")
    series: dict[tuple[str, Labels], float] = {}
    try:
        for family in parser.text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                if key in series or not isfinite(sample.value) or not 0 <= sample.value <= MAX_COUNT:
                    raise ScrapeError(f"{sample.name}: {str(sample.value)[:30]} is no count, or is given twice")
                series[key] = float(sample.value)
    except (ValueError, IndexError, OverflowError) as error:
        raise ScrapeError(f"a line of the counters cannot be read: {str(error)[:100]}") from error
    kind = _kind_of({name for name, _ in named_lines}, kinds)
    ours = {*kind.counters, kind.running, STARTED}
    return ServerPage(kind, {key: value for key, value in series.items() if key[0] in ours})


def _kind_of(names: AbstractSet[str], kinds: Sequence[ServerKind]) -> ServerKind:
    """Return the one server that has these samples."""
    present = [kind for kind in kinds if names & {kind.input, kind.output}] or [
        kind for kind in kinds if kind.prefix and any(name.startswith(kind.prefix) for name in names)
    ]
    if len(present) != 1:
        *names_before, last_name = (kind.name for kind in present or kinds)
        servers = f"{', '.join(names_before)} {'and' if present else 'or'} {last_name}" if names_before else last_name
        problem = f"the page has {'' if present else 'no '}counters of {servers}"
        raise ScrapeError(f"{problem}; of another server, name two with --input-counter and --output-counter")
    missing = [name for name in (present[0].input, present[0].output) if name not in names]
    if missing and not present[0].prefix:
        raise ScrapeError(f"the page has no {' and no '.join(missing)}")
    return present[0]


def check_url(url: str) -> str:
    """Return a URL that may be polled.

    Raises:
        ConfigError: It is not http or https, has no host, or contains a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not host or not url.isprintable() or " " in url:
        raise ConfigError(f"--url {url!r}: give an http or https address, such as http://127.0.0.1:8080/metrics")
    if "@" in parts.netloc:
        raise ConfigError("--url: user names and passwords in the address are not supported")
    return url


def is_loopback(url: str) -> bool:
    """Return whether a URL is of this machine's loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirections: only the address that the user named is contacted."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return None, which makes urllib raise HTTPError."""


def fetch_page(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return the text at a URL. Nothing else is contacted: proxies and redirections are not used.

    Raises:
        ScrapeError: There is no answer in time, its status is not 200, or it is too large.
    """
    end_s = time.monotonic() + timeout_s
    request = Request(url, headers={"Accept": "text/plain;version=0.0.4"})  # noqa: S310  # checked by `check_url`
    content = bytearray()
    try:
        with build_opener(_NoRedirect, ProxyHandler({})).open(request, timeout=timeout_s) as response:
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_PAGE_BYTES:
                    raise ScrapeError(f"the page has more than {MAX_PAGE_BYTES} bytes")
                if time.monotonic() > end_s:
                    raise ScrapeError(f"no whole page within {timeout_s:g} s")
    except HTTPError as error:
        error.close()
        target = str(error.headers.get("Location", ""))[:200]
        raise ScrapeError(f"HTTP status {error.code}{f', to {target}' if target else ''}") from error
    except TimeoutError as error:
        raise ScrapeError(f"no page within {timeout_s:g} s") from error
    except (URLError, OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        late = isinstance(reason, TimeoutError)
        raise ScrapeError(f"no page within {timeout_s:g} s" if late else f"no page: {str(reason)[:200]}") from error
    if time.monotonic() > end_s:
        raise ScrapeError(f"no whole page within {timeout_s:g} s")
    return content.decode("utf-8", "replace")


def check_first_page(url: str, kinds: Sequence[ServerKind]) -> None:
    """Read a page once before anything is measured.

    Raises:
        ScrapeError: There is no page of a server, and what to do.
    """
    try:
        parse_page(fetch_page(url), kinds)
    except ScrapeError as error:
        path = "" if urlsplit(url).path.rstrip("/").endswith("/metrics") else "; the address usually ends with /metrics"
        raise ScrapeError(f"--url {url}: {error}{path}; {SERVER_FIX}") from error


SERVER_FIX = "a server must run with its metrics on (llama-server --metrics, sglang --enable-metrics)"
