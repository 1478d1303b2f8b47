from dataclasses import replace

import pytest

from tests.support.reports import bare_report, sample_report
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.requests import TokenPosition, TokenRow
from torchwatt.core.terms import Domain
from torchwatt.core.trace import ModuleInfo
from torchwatt.views import to_html_fragment, to_payload, to_text
from torchwatt.views.answer import answer
from torchwatt.views.energy_rates import generation_sentence, token_rates

S = 1_000_000_000


def request(number, batch, stage, start_s, time_s, energy_j, tokens=(100, 21)):
    return TokenRow(
        number, batch, stage, *tokens, 0, None, None, start_s * S, (start_s + time_s) * S, float(time_s), energy_j
    )


CALLS = (
    request(0, 0, "prefill", 0, 2, 9.0),
    request(0, 0, "decode", 2, 4, 11.0),
    request(1, 1, "prefill", 6, 1, 2.0),
    request(1, 1, "decode", 7, 2, 10.0),
)


def test_the_first_call_is_apart():
    rates = {rate.label: rate for rate in token_rates(replace(sample_report(), tokens=CALLS))}
    assert rates["per output token"].value == "571 mJ"  # 12 J / 21
    assert rates["per total token"].value == "99.2 mJ"  # 12 J / 121
    assert rates["prefill, per input token"].value == "20.0 mJ"
    assert rates["decode, per output token"].value == "500 mJ"  # 10 J / 20
    assert "first call 952 mJ" in rates["per output token"].detail  # 20 J / 21
    assert "21 tokens of 1 request" in rates["per output token"].detail
    assert rates["time to first token"].value == "1.00 s"
    assert rates["time to first token"].detail == "then 100 ms a token · 7 output tokens/s · calls after the first"


def test_the_boundary_is_named_beside_each_figure():
    report = replace(sample_report(), tokens=CALLS)
    assert report.boundary
    assert all(report.boundary in rate.detail for rate in token_rates(report) if rate.label != "time to first token")


def test_the_answer_says_joules_per_token():
    report = replace(sample_report(), tokens=CALLS)
    sentence = (
        "1 request with 100 input and 21 output tokens (calls after the first): 571 mJ per output token, 99.2 mJ per "
        "input or output token; prefill 20.0 mJ per input token, decode 500 mJ per output token."
    )
    assert generation_sentence(report) == sentence
    assert sentence in answer(report).sentences


def test_unknown_joules_are_no_sentence():
    unknown = replace(CALLS[1], energy_j=None)
    report = replace(sample_report(), tokens=(CALLS[0], unknown))
    assert not generation_sentence(report)
    labels = [rate.label for rate in token_rates(report)]
    assert labels == ["prefill, per input token", "time to first token"]
    assert not generation_sentence(sample_report())


@pytest.mark.parametrize("energy_j", [3.0, None])
def test_positions_are_in_each_view(energy_j):
    positions = (TokenPosition(0, 0, 2, 1.0, 8.0), TokenPosition(1, 15, 30, 3.0, energy_j))
    report = replace(sample_report(), tokens=CALLS, positions=positions)
    rows = to_payload(report)["positions"]
    assert [(row["first"], row["last"], row["tokens"]) for row in rows] == [(0, 0, 2), (1, 15, 30)]
    assert rows[1]["energy_j"] == (None if energy_j is None else pytest.approx(0.1))
    text = to_html_fragment(report)
    assert "0 (prefill)" in text
    assert ("100 mJ" if energy_j else "—") in text[text.index("1 to 15") :]
    assert "per output token" in to_text(report)


def test_calls_of_stages_are_added_and_each_stage_has_its_line():
    def entry(domain, stage, joules, calls):
        return Entry(
            domain, "net.a", "forward", joules, None, None, None, None, 0.1, calls, "fit", "modelled", stage=stage
        )

    ledgers = [
        Ledger(domain, 3.0, (entry(domain, "prefill", 1.0, 3), entry(domain, "decode", 2.0, 117)), "counter",
               "measured", 1.0, 1.0)
        for domain in (Domain("cpu", 0), Domain("ram"))
    ]  # fmt: skip
    report = bare_report(ledgers=tuple(ledgers), modules=(ModuleInfo("net.a", "Linear"),), unavailable=())
    rows = [row for row in to_payload(report)["layers"] if row["fqn"] == "net.a"]
    assert [row["calls"] for row in rows] == [120]
    text = to_html_fragment(report)
    assert ">stage<" in text
    assert text.count(">decode<") == text.count(">prefill<") == 2
    assert ">stage<" not in to_html_fragment(sample_report())
