"""Client of Electricity Maps' API: the only module of torchwatt that opens a connection to the internet.

It is called on an explicit argument of the user, with the user's token and a zone. Each number comes with its zone, its
hour and whether it was estimated. `GET {url}/v3/carbon-intensity/past-range` with the header `auth-token`; the
place is not derived from the caller's address (`shouldUseFallbackCallerLookup=false`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from queue import Empty, SimpleQueue
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from torchwatt.carbon.electricity_maps import HOUR, NAME, HourlyIntensity, as_factor
from torchwatt.carbon.factor_files import MAX_FACTOR, plain_number, utc_time
from torchwatt.carbon.grid_series import GridSeries, hourly_series
from torchwatt.core.errors import FactorError
from torchwatt.core.units import hour_start
from torchwatt.disk.helper_thread import HelperThread

API = "https://api.electricitymaps.com"
TIMEOUT_S = 20.0  # of the socket, between two bytes
OVERALL_S = 60.0  # for the whole response
MAX_BYTES = 1 << 22  # of a response; 240 hours are 100 kB
MAX_HOURS = 240  # of one request


def fetch_hours(hours: Iterable[int], *, zone: str, token: str, at: datetime, url: str = API) -> GridSeries:
    """Request the grid intensity of some hours of one zone.

    Args:
        hours: Hours since 1970 (UTC).
        zone: As Electricity Maps names it, such as `FR`.
        token: The user's own.
        at: The time of the request; it is recorded in the factors.
        url: The address of the API.

    Raises:
        FactorError: There is no token or zone, the hours span more than ten days, or there is no valid response.
    """
    sorted_hours = sorted(hours)
    if not zone or not token or not sorted_hours:
        raise FactorError("Electricity Maps needs a zone (such as FR), a token, and a run with energy by hour")
    if not token.isascii() or not token.isprintable():
        raise FactorError("the token for Electricity Maps holds what no token holds: a line end, perhaps")
    if sorted_hours[-1] - sorted_hours[0] >= MAX_HOURS:
        raise FactorError(f"{NAME} answers at most {MAX_HOURS} hours at once: use a history file with factors=")
    if urlsplit(url).scheme not in {"https", "http"}:
        raise FactorError(f"{url!r}: give an http(s) address")
    parameters = {
        "zone": zone,
        "start": f"{hour_start(sorted_hours[0]):%Y-%m-%dT%H:00:00Z}",
        "end": f"{hour_start(sorted_hours[-1]) + HOUR:%Y-%m-%dT%H:00:00Z}",
        "temporalGranularity": "hourly",
        "emissionFactorType": "lifecycle",
        "shouldUseFallbackCallerLookup": "false",
    }
    response = _get(f"{url}/v3/carbon-intensity/past-range?{urlencode(parameters)}", token)
    rows = [_hour(row, zone) for row in _rows(response)]
    version = f"API v3, past-range, {NAME}'s answer of {at:%Y-%m-%d}"
    intensities = [item for item in rows if item is not None]
    return hourly_series(f"{NAME} {zone} (API)", (as_factor(item, version, retrieved_at=at) for item in intensities))


class _RefuseRedirect(HTTPRedirectHandler):
    """Refuses redirections: urllib would send the token to the other host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return None, which makes urllib raise HTTPError."""


def _ask(request: Request) -> bytes:
    """Return the body of the response.

    The timeout of a socket restarts with every byte, so a helper thread reads and this thread waits for `OVERALL_S`.

    Raises:
        TimeoutError: The response is not complete in time.
    """
    answers: SimpleQueue[bytes | BaseException] = SimpleQueue()

    def wait() -> None:
        try:
            with build_opener(_RefuseRedirect).open(request, timeout=TIMEOUT_S) as response:
                answers.put(response.read(MAX_BYTES + 1))
        except BaseException as error:  # raised again in the calling thread
            answers.put(error)

    HelperThread(wait, "torchwatt-electricity-maps").start()
    try:
        reply = answers.get(timeout=OVERALL_S)
    except Empty as error:
        raise TimeoutError(f"not within {OVERALL_S:g} s") from error
    if isinstance(reply, BaseException):
        raise reply
    return reply


def _get(url: str, token: str) -> Any:
    request = Request(url, headers={"auth-token": token, "accept": "application/json"})  # noqa: S310  # scheme checked
    try:
        content = _ask(request)
        if len(content) > MAX_BYTES:
            raise FactorError(f"{NAME} answered more than {MAX_BYTES} bytes")
        return json.loads(content)
    except (URLError, OSError, ValueError, RecursionError, HTTPException) as error:
        # The token is in a header, not in the address, so the message does not show it.
        raise FactorError(f"{NAME} gave no answer: {error}") from error


def _rows(response: Any) -> list[Mapping[str, Any]]:
    rows = response.get("data") if isinstance(response, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise FactorError(f"{NAME}: expected a list 'data' in the answer")
    return rows


def _hour(row: Mapping[str, Any], zone: str) -> HourlyIntensity | None:
    """Parse one hour; None if the zone has no number for it."""
    value = row.get("carbonIntensity")
    if value is None:
        return None
    try:
        start = utc_time(str(row["datetime"]))
        start + HOUR  # raises OverflowError if the end of the hour is no valid time
        grams = float(plain_number(value) if isinstance(value, str) else value)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise FactorError(f"{NAME}: cannot read {str(dict(row))[:200]}") from error
    if isinstance(value, bool) or not 0 <= grams <= MAX_FACTOR:
        raise FactorError(f"{NAME}: {str(value)[:40]} is no carbon intensity")
    if row.get("zone", zone) != zone:
        raise FactorError(f"{NAME}: asked for {zone}, was answered {row['zone']!r}")
    basis = {"lifecycle": "lifecycle", "direct": "direct"}.get(str(row.get("emissionFactorType", "")), "unknown")
    estimated = row.get("isEstimated")
    method = str(row.get("estimationMethod") or "")
    is_estimated = estimated if isinstance(estimated, bool) else None
    return HourlyIntensity(zone, start.astimezone(UTC), grams, basis, is_estimated, method)
