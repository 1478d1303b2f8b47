"""The answer: its sentences, and each hint on both sides of its threshold."""

import time
from dataclasses import replace
from math import fsum

import pytest

from tests.support.reports import CPU, GPU, bare_report, sample_report
from torchwatt.core.errors import ConfigError
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Unavailable
from torchwatt.core.report import Step
from torchwatt.core.trace import ModuleInfo
from torchwatt.reports.report_result import JobRun
from torchwatt.views import answer, to_html_fragment, to_markdown, to_payload, to_text
from torchwatt.views.answer import (
    COMMUNICATION_TIME_SHARE,
    COMPILE_TIME_SHARE,
    DATA_TIME_SHARE,
    HINTS,
    IDLE_ENERGY_SHARE,
    WORK_ENERGY_SHARE,
    WORK_RATIO,
    communication_hint,
    compile_hint,
    data_hint,
    dtype_hint,
    idle_hint,
    main_groups,
    modules_name,
    work_hint,
)
from torchwatt.views.layer_groups import default_view, fold_names, layer_groups, module_type
from torchwatt.views.report_summary import missing_meters_text


def entry(domain, name, energy_j, time_s, phase="other"):
    return Entry(domain, name, phase, energy_j, None, None, None, None, time_s, 1, "time_share", "apportioned")


def made_report(rows, *, domain=CPU, provenance="measured", steps=5, modules=()):
    """Book (name, joules, seconds) in one domain of a run of 100 s."""
    entries = tuple(entry(domain, *row) for row in rows)
    total_j = sum(row[1] for row in rows)
    ledger = Ledger(domain, total_j, entries, "counter", provenance, 100.0, 100.0)
    return bare_report(
        end_ns=100 * 10**9,
        ledgers=(ledger,),
        unavailable=(),
        modules=tuple(modules),
        steps=tuple(Step(i, i, i + 1, {str(domain): 1.0}) for i in range(steps)),
    )


def share_report(row, energy_share, time_share, **changes):
    rows = [(row, 1320 * energy_share, 100 * time_share), ("fc", 1320 * (1 - energy_share), 100 * (1 - time_share))]
    return made_report(rows, **changes)


@pytest.mark.parametrize(
    ("hint", "row", "threshold"),
    [
        (data_hint, "(data)", DATA_TIME_SHARE),
        (communication_hint, "(communication)", COMMUNICATION_TIME_SHARE),
        (compile_hint, "(compile)", COMPILE_TIME_SHARE),
        (idle_hint, "(idle)", IDLE_ENERGY_SHARE),
    ],
)
def test_a_hint_needs_more_than_its_threshold(hint, row, threshold):
    above, below = (share_report(row, threshold + d, threshold + d) for d in (0.002, -0.002))
    assert hint(below) is None
    assert answer(below).hint == ""
    assert f"{row} {(threshold + 0.002) * 1320:.3g}"[:6] in hint(above).text
    assert hint(above).text.endswith("J of 1.32 kJ.")
    assert answer(above).hint == hint(above).text
    assert [make(above) for make in HINTS].count(None) == len(HINTS) - 1


def test_the_hints_say_their_evidence():
    assert data_hint(share_report("(data)", 410 / 1320, 0.31)).text == (
        "Waiting for data took 31 % of the time: (data) 410 J of 1.32 kJ."
    )
    assert compile_hint(share_report("(compile)", 0.5, 0.78)).text == (
        "Compiling took 78.0 s of 100 s and is not in the median per step: (compile) 660 J of 1.32 kJ."
    )
    assert "per step" not in compile_hint(share_report("(compile)", 0.5, 0.78, steps=2)).text
    assert idle_hint(share_report("(idle)", 0.19, 0.5)).text == (
        "19 % of the joules were idle power: (idle) 251 J of 1.32 kJ."
    )


def test_idle_power_of_a_model_is_no_hint():
    assert idle_hint(share_report("(idle)", 0.9, 0.9, provenance="modelled")) is None


def decoding_report(
    *, decode_j=600.0, decode_bytes=4e12, params=4_000_000, provenance="measured", other_j=100.0, domain=CPU, dtype=""
):
    """Book one layer of 1,000 calls a stage: a TFLOP in prefill for 100 J and 1e11 bytes, one in decode."""
    module = ModuleInfo("fc", "Linear", params // 4, params, dtype=dtype)
    rows = [("fc", 100.0, 10.0, "forward"), ("fc", decode_j, 50.0, "forward"), ("(idle)", other_j, 40.0)]
    report = made_report(rows, domain=domain)
    (ledger,) = report.ledgers
    prefill, decode, idle = ledger.entries
    prefill = replace(prefill, stage="prefill", calls=1000, flops=1e12, bytes_moved=1e11)
    decode = replace(decode, stage="decode", calls=10**6, flops=1e12, bytes_moved=decode_bytes)
    ledger = replace(ledger, entries=(prefill, decode, idle), provenance=provenance)
    return replace(report, ledgers=(ledger,), modules=(module,))


def test_decode_that_reads_weights_for_few_tokens_is_a_hint():
    report = decoding_report()
    assert work_hint(report).text == (
        "Decode took 600 J per TFLOP, prefill 100 J: it does 0.25 operations per byte instead of 10, and 100 % of the "
        "bytes are weights, which a larger batch reads once for all."
    )
    assert work_hint(report).energy_j == pytest.approx(500.0)
    assert answer(report).hint == work_hint(report).text


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ({"decode_j": 101 * WORK_RATIO}, {"decode_j": 99 * WORK_RATIO}),
        (
            {"decode_bytes": 1.01e11 * WORK_RATIO, "params": 200_000},
            {"decode_bytes": 0.99e11 * WORK_RATIO, "params": 200_000},
        ),
        ({"params": 2_040_000}, {"params": 1_960_000}),
        ({"other_j": 500 / WORK_ENERGY_SHARE - 720}, {"other_j": 500 / WORK_ENERGY_SHARE - 680}),
        ({}, {"provenance": "modelled"}),
    ],
)
def test_the_hint_of_work_needs_all_of_its_evidence(above, below):
    assert work_hint(decoding_report(**above)) is not None
    assert work_hint(decoding_report(**below)) is None


WIDE = {"domain": GPU, "dtype": "float32"}


def test_weights_of_float32_in_decode_are_a_hint_on_a_gpu():
    hint = dtype_hint(decoding_report(**WIDE, params=3_000_000))
    assert hint.text == (
        "Decode reads weights of float32, 75 % of its bytes: bfloat16 has half of them, and its layers took 600 J on "
        "the GPU."
    )
    assert hint.energy_j == pytest.approx(600 * 0.75 / 2)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ({}, {"dtype": "bfloat16"}),
        ({}, {"domain": CPU}),  # few have fast products of 16 bits
        ({}, {"provenance": "modelled"}),
        ({"params": 2_040_000}, {"params": 1_960_000}),
        ({"other_j": 300 / WORK_ENERGY_SHARE - 720}, {"other_j": 300 / WORK_ENERGY_SHARE - 680}),
    ],
)
def test_the_hint_of_types_needs_all_of_its_evidence(above, below):
    assert dtype_hint(decoding_report(**WIDE | above)) is not None
    assert dtype_hint(decoding_report(**WIDE | below)) is None


def test_without_operations_decode_is_no_hint():
    report = decoding_report()
    entries = [replace(entry, flops=None) for entry in report.ledgers[0].entries]
    assert work_hint(replace(report, ledgers=(replace(report.ledgers[0], entries=tuple(entries)),))) is None


def test_a_waiting_gpu_is_named_only_where_it_was_idle_as_long():
    report = share_report("(data)", 0.3, 0.31)
    for idle_s, said in ((40.0, True), (10.0, False)):
        gpu = Ledger(GPU, 10.0, (entry(GPU, "(idle)", 10.0, idle_s),), "counter", "measured", 100.0, 100.0)
        text = data_hint(replace(report, ledgers=(*report.ledgers, gpu))).text
        assert ("and the GPU was idle for 40 % of it" in text) == said


def test_of_several_hints_the_one_with_the_most_joules_is_given():
    report = made_report([("(data)", 300.0, 20.0), ("(idle)", 400.0, 30.0), ("fc", 300.0, 50.0)])
    assert answer(report).hint == idle_hint(report).text


def test_the_answer_is_the_same_in_every_view():
    report = sample_report()
    sentences = answer(report).sentences
    assert len(sentences) == 2
    assert JobRun(report).summary() == answer(report).text == " ".join(sentences)
    text, html = " ".join(to_text(report).split()), to_html_fragment(report).replace("\xa0", " ")
    markdown = to_markdown(report).replace("\\", "")
    for sentence in sentences:
        assert sentence in text
        assert sentence in html
        assert sentence in markdown
    assert to_payload(report)["answer"] == {"sentences": list(sentences), "hint": ""}


@pytest.mark.parametrize(
    ("names", "classes", "said"),
    [
        (("0", "1", "2"), ("Linear", "GELU", "Linear"), "2 (Linear) 50 %, 1 (GELU) 33 % (together 83 %)"),
        (("0", "1", "2"), ("Linear",) * 3, "all 3 Linear modules 100 %"),
        (("0.0", "0.1", "1.0", "1.1"), ("Linear", "ReLU") * 2, "*.1 (2 ReLU) 60 %, *.0 (2 Linear) 40 %"),
        (
            ("0.0", "0.1", "1.0", "1.1", "2"),
            ("Linear", "ReLU", "Linear", "ReLU", "Tanh"),
            "{0-1}.1 (2 ReLU) 40 %, 2 (Tanh) 33 %, {0-1}.0 (2 Linear)",
        ),
        (("0", "1"), ("", ""), "all numbered modules 100 %"),
        (("fc1", "2"), ("Linear", "Linear"), "2 (Linear) 67 %, fc1 33 %"),
    ],
)
def test_modules_that_have_only_numbers_are_named_with_their_class(names, classes, said):
    rows = [(name, 10.0 * (n + 1), 1.0) for n, name in enumerate(names)]
    kinds = dict(zip(names, classes, strict=True)) | {name.split(".")[0]: "Sequential" for name in names if "." in name}
    params = {name: n for n, name in enumerate(names)} if classes[:2] == ("Linear", "GELU") else {}
    modules = [ModuleInfo(name, kind, params=params.get(name, 0)) for name, kind in kinds.items() if kind]
    assert f"Most of it: {said}" in " ".join(answer(made_report(rows, modules=modules)).sentences)


def kinds_in_turn(blocks, width):
    """Return rows and modules of a stack whose blocks are lists of a norm and a block of one of several classes."""
    rows, modules = [], []
    for n in range(blocks):
        kind, inner = (("Attention", "to_q"), ("FeedForward", "proj"))[n % 2]
        modules.append(ModuleInfo(f"net.layers.{n}", "ModuleList"))
        for name, class_name, energy_j in (
            ("0", "LayerNorm", 1.0), ("1", kind, 4.0), (f"1.{inner}", "Linear", width if n % 2 == 0 else 10.0),
        ):  # fmt: skip
            modules.append(ModuleInfo(f"net.layers.{n}.{name}", class_name, params=10))
            rows.append((f"net.layers.{n}.{name}", energy_j, 1.0))
    return rows, modules


def test_blocks_of_several_kinds_in_turn_are_named_by_class():
    rows, modules = kinds_in_turn(blocks=6, width=30.0)
    text = " ".join(answer(made_report(rows, modules=modules)).sentences)
    assert "Most of it: 3 Attention in net.layers 68 %, 3 FeedForward in net.layers 28 % (together 96 %)." in text
    rows, modules = kinds_in_turn(blocks=6, width=90.0)
    text = " ".join(answer(made_report(rows, modules=modules)).sentences)
    assert "Most of it: to_q of 3 Attention in net.layers 82 %." in text


def test_numbers_of_a_list_stay_where_the_class_does_not_tell_which():
    names = [f"h.{n}.fc" for n in range(4)]
    kinds = {name: ("Linear", 10 if n < 2 else 20) for n, name in enumerate(names)}
    kinds |= {f"h.{n}": ("Block", 0) for n in range(4)}
    assert modules_name("h.{0-1}", names, kinds) == "h.{0-1} (2 Block)"
    kinds |= {f"h.{n}": ("Dense" if n < 2 else "Sparse", 0) for n in range(4)}
    assert modules_name("h.{0-1}", names, kinds) == "2 Dense in h"
    assert modules_name("h.{2-3}.fc", names, kinds) == "fc of 2 Sparse in h"


def test_without_a_meter_the_answer_is_one_sentence():
    assert answer(bare_report()).sentences == ("Nothing was metered in 1.00 s.",)


def test_the_largest_part_of_the_model_is_named_whatever_else_used_more():
    report = made_report([("(outside)", 900.0, 90.0), ("fc", 60.0, 6.0), ("act", 40.0, 4.0)])
    assert "fc 6 %" in answer(report).sentences[1]


def test_groups_of_the_answer_add_up_and_are_parts_of_repeated_blocks():
    groups = main_groups(sample_report())
    assert sum(groups.values()) == pytest.approx(sample_report().energy_j, rel=1e-12)
    assert {"blocks.*.mlp", "blocks.*.attn", "head", "(optimizer)"} <= set(groups)


GPT = [f"h.{i}{part}" for i in range(4) for part in ("", ".attn", ".mlp", ".mlp.0", ".mlp.1")]


@pytest.mark.parametrize(
    ("names", "classes", "folded"),
    [
        (GPT, {}, {"h.*", "h.*.attn", "h.*.mlp", "h.*.mlp.*"}),
        (["a.0", "a.1"], {"a.0": "Linear", "a.1": "ReLU"}, {"a.0", "a.1"}),
        (["a.0", "a.1.b"], {}, {"a.0", "a.1.b"}),
        (["l.0.x", "l.1.x", "l.2.x", "l.3.y", "l.4.y"], {}, {"l.{0-2}.x", "l.{3-4}.y"}),
        (["l.0", "l.1", "l.2"], {"l.1": "ReLU"}, {"l.{0,2}", "l.1"}),
        (["fc1", "fc2", "(root)", "(idle)"], {}, {"fc1", "fc2", "(root)", "(idle)"}),
        ([".a", "a", "..", "a..b"], {}, {".a", "a", "..", "a..b"}),
    ],
)
def test_numbers_are_folded_only_where_the_siblings_are_alike(names, classes, folded):
    kinds = {name: (classes.get(name, "Linear"), 0) for name in names}
    assert set(fold_names(names, kinds).values()) == folded


def test_the_answer_of_a_thousand_levels_takes_a_third_of_a_second():
    names = [".".join(["x"] * depth) for depth in range(1, 1001)]
    entries = tuple(
        Entry(GPU, name, "forward", 1.0, None, None, None, None, 0.1, 1, "fit", "apportioned") for name in names
    )
    ledger = Ledger(GPU, 1000.0, entries, "counter", "measured", 1.0, 1.0)
    report = bare_report(ledgers=(ledger,), modules=tuple(ModuleInfo(name, "X") for name in names), unavailable=())
    began_s = time.thread_time()
    assert fsum(main_groups(report).values()) == 1000.0
    assert time.thread_time() - began_s < 1.6  # 3.3 s where each level joins its name anew


def test_siblings_of_another_size_are_not_alike():
    kinds = {"a.0": ("Linear", 10), "a.1": ("Linear", 20)}
    assert set(fold_names(["a.0", "a.1"], kinds).values()) == {"a.0", "a.1"}


def test_a_total_has_a_band_or_says_that_none_is_known():
    """A run of few steps has no interval between repeats."""
    report = sample_report()
    short = replace(report, ledgers=tuple(replace(x, energy_lo_j=None, energy_hi_j=None) for x in report.ledgers))
    lo_j, hi_j = short.systematic_j
    assert answer(short).sentences[0].startswith(f"7.40 kJ (another meter: {lo_j / 1e3:.2f} to {hi_j / 1e3:.2f} kJ) in")
    unknown = replace(short, meters=())
    assert answer(unknown).sentences[0].startswith("7.40 kJ (no interval known) in")
    assert answer(report).sentences[0].startswith("7.40 kJ (90 % of repeats: ")


def test_the_default_view_folds_what_repeats():
    assert default_view(sample_report()) == "blocks"
    flat = made_report([("fc1", 1.0, 1.0), ("fc2", 2.0, 1.0)])
    assert default_view(flat) == "hottest"


def test_a_group_tells_the_least_and_the_most_of_its_modules():
    rows = [(f"h.{i}.fc", 1.0 + i / 4, 1.0) for i in range(3)]
    report = made_report(rows, modules=[ModuleInfo(name, "Linear") for name, *_ in rows])
    (group,) = layer_groups(report, "blocks")
    assert (group.name, group.count, group.energy_j) == ("h.*.fc", 3, 3.75)
    assert (group.each_lo_j, group.each_hi_j, group.provenance) == (1.0, 1.5, "apportioned")


@pytest.mark.parametrize(
    ("class_name", "kind"),
    [
        ("Linear", "Linear"), ("Conv1D", "Linear"), ("Conv2d", "convolution"), ("MultiheadAttention", "attention"),
        ("GPT2Attention", "attention"), ("LayerNorm", "norm"), ("LlamaRMSNorm", "norm"), ("BatchNorm2d", "norm"),
        ("Embedding", "embedding"), ("GELU", "activation"), ("SiLU", "activation"), ("NewGELUActivation", "activation"),
        ("LSTM", "recurrent"), ("GRU", "recurrent"), ("RNN", "recurrent"), ("MaxPool2d", "pooling"),
        ("Dropout", "dropout"), ("CrossEntropyLoss", "loss"), ("GPT2Block", "GPT2Block"), ("ELU", "activation"),
        ("", "class unknown"),
    ],
)  # fmt: skip
def test_modules_have_a_type_by_their_class(class_name, kind):
    assert module_type(class_name) == kind


def test_missing_meters_are_one_sentence():
    report = made_report([("fc", 1.0, 1.0)], provenance="modelled")
    gone = (Unavailable("cpu", "no powercap"), Unavailable("gpu", "no driver"))
    assert missing_meters_text(replace(report, unavailable=gone)) == (
        "No power meter found for GPU and CPU; CPU is estimated."
    )
    assert missing_meters_text(report) == ""


def test_layers_by_is_a_table_that_adds_up():
    run = JobRun(sample_report())
    for view in ("hottest", "blocks", "tree", "type"):
        assert run.layers_by(view).energy_j.sum() == pytest.approx(run.energy_j, rel=1e-12)
    with pytest.raises(ConfigError, match="hottest, blocks, tree, type"):
        run.layers_by("block")
