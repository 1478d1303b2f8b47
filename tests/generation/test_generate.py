"""Tokens and stages of transformers' own `generate`, against its tensors and against hooks and a clock of the test."""

import gc
import os
import threading
import time
import weakref
from math import fsum, isclose
from pathlib import Path

import pytest
import torch

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without
from torchwatt.core.errors import ConfigError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", reason="the adapter is for transformers")
transformers = LazyModule("transformers")

PAD, END = 0, 2


def config(kind="LlamaConfig", **given):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"vocab_size": 60, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 1}
    return getattr(transformers, kind)(**shape, **special, **given)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config(max_position_embeddings=256)).eval()


def prompts(rows, length, seed=0):
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


class Passes:
    """When each forward pass of a model began and ended, by hooks of the test."""

    def __init__(self, model):
        self.began, self.ended = [], []
        self.handles = (
            model.register_forward_pre_hook(lambda *_: self.began.append(time.monotonic_ns())),
            model.register_forward_hook(lambda *_: self.ended.append(time.monotonic_ns())),
        )

    def remove(self):
        for handle in self.handles:
            handle.remove()


def generated(model, *args, **given):
    """Generate in a session; return its run, the sequences, the passes, and when `generate` began and ended."""
    passes = Passes(model)
    try:
        with tw.profile(model, baseline_s=0.2) as run:
            begin_ns = time.monotonic_ns()
            result = model.generate(*args, **given)
            end_ns = time.monotonic_ns()
    finally:
        passes.remove()
    assert list(run.tokens.columns) == [
        "request", "stage", "input_tokens", "cached_tokens", "output_tokens", "drafted_tokens", "accepted_tokens",
        "time_s", "energy_j", "energy_lo_j", "energy_hi_j",
    ]  # fmt: skip
    return run, result, passes, (begin_ns, end_ns)


def counts(run):
    """Return (input, output) tokens by request."""
    first = run.tokens.drop_duplicates("request")
    return list(zip(first.input_tokens, first.output_tokens, strict=True))


def own_length(row, begin):
    """The tokens of a padded row up to its end token, counted by the test."""
    tokens = row.tolist()[begin:]
    return tokens.index(END) + 1 if END in tokens else len(tokens)


def assert_first_token_lies_between_two_passes(run, passes, bounds):
    """The boundary of prefill and decode is after the first pass and before the second."""
    rows = {row.stage: row for row in run.report.tokens if row.request == 0}
    assert bounds[0] <= rows["prefill"].start_ns <= passes.began[0]
    assert passes.ended[0] <= rows["prefill"].end_ns <= passes.began[1]
    assert rows["decode"].end_ns <= bounds[1]
    assert rows["decode"].end_ns >= passes.ended[-1]


def assert_parts_and_rest_are_the_total(run):
    parts = run.tokens.energy_j.sum()
    stages = run.layers.groupby("stage").energy_self_j.sum()
    outside_j = stages.get("", 0.0)
    assert isclose(fsum(run.layers.energy_self_j), run.energy_j, rel_tol=1e-9)
    assert parts == pytest.approx(run.energy_j - outside_j, rel=0.02)
    assert set(run.tokens.stage) >= {"prefill", "decode"}


def test_greedy_search(llama):
    run, sequences, passes, bounds = generated(llama, prompts(3, 12), max_new_tokens=20, do_sample=False)
    assert counts(run) == [(12, own_length(row, 12)) for row in sequences]
    assert len(passes.began) == sequences.shape[1] - 12
    assert_first_token_lies_between_two_passes(run, passes, bounds)
    assert_parts_and_rest_are_the_total(run)
    figures = run.generation
    assert figures["all"]["requests"] == 3
    assert figures["all"]["output_tokens"] == sum(own_length(row, 12) for row in sequences)
    assert figures["all"]["time_to_first_token"] * 1e6 == pytest.approx(
        run.report.tokens[0].end_ns - run.report.tokens[0].start_ns, abs=1
    )


def test_sampling_with_rows_that_end_early(llama):
    torch.manual_seed(1)
    llama.generation_config.eos_token_id = [END, 5, 6, 7, 8, 9, 10, 11, 12]
    try:
        run, sequences, *_ = generated(llama, prompts(6, 8), max_new_tokens=40, do_sample=True)
    finally:
        llama.generation_config.eos_token_id = END
    ends = {END, *range(5, 13)}
    own = [next((i + 1 for i, t in enumerate(row.tolist()[8:]) if t in ends), 40) for row in sequences]
    assert len(set(own)) > 1  # else this shows nothing
    assert [output for _, output in counts(run)] == own


def test_a_padded_batch_counts_the_tokens_of_its_mask(llama):
    ids = prompts(3, 10)
    ids[0, :6], ids[1, :3] = PAD, PAD
    run, *_ = generated(llama, ids, attention_mask=(ids != PAD).long(), max_new_tokens=5, min_new_tokens=5)
    assert counts(run) == [(4, 5), (7, 5), (10, 5)]
    without_mask, *_ = generated(llama, ids, max_new_tokens=5, min_new_tokens=5)
    assert counts(without_mask) == [(4, 5), (7, 5), (10, 5)]


def test_beams_count_what_is_returned(llama):
    run, sequences, *_ = generated(
        llama, prompts(2, 9), max_new_tokens=7, min_new_tokens=7, num_beams=3, num_return_sequences=2, do_sample=False
    )
    assert sequences.shape == (4, 16)
    assert counts(run) == [(9, 7)] * 4


def test_chunked_prefill_is_prefill_until_the_first_token(llama):
    run, _, passes, _ = generated(llama, prompts(1, 30), max_new_tokens=4, min_new_tokens=4, prefill_chunk_size=10)
    rows = {row.stage: row for row in run.report.tokens}
    assert len(passes.began) == 3 + 3  # three chunks, and a pass for each later token
    assert passes.ended[2] <= rows["prefill"].end_ns <= passes.began[3]
    assert counts(run) == [(30, 4)]


def test_static_cache_and_bytes_of_the_cache(llama):
    run, *_ = generated(
        llama, prompts(2, 12), max_new_tokens=8, min_new_tokens=8, cache_implementation="static", disable_compile=True
    )
    assert counts(run) == [(12, 8)] * 2
    dynamic, result, *_ = generated(
        llama, prompts(2, 12), max_new_tokens=8, min_new_tokens=8, return_dict_in_generate=True
    )
    layers = result.past_key_values.layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    assert dynamic.generation["all"]["cache_bytes"] == held // 2


@pytest.mark.heavy
def test_a_quantised_cache_holds_fewer_bytes_and_the_same_tokens():
    pytest.importorskip("optimum.quanto")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    run, result, passes, bounds = generated(
        model, prompts(2, 16), max_new_tokens=20, min_new_tokens=20, do_sample=False, return_dict_in_generate=True,
        cache_implementation="quantized",
        cache_config={"backend": "quanto", "nbits": 4, "q_group_size": 32, "residual_length": 8},
    )  # fmt: skip
    assert counts(run) == [(16, 20)] * 2
    assert_first_token_lies_between_two_passes(run, passes, bounds)
    assert_parts_and_rest_are_the_total(run)
    held = 0
    for layer in result.past_key_values.layers:
        for recent, older in ((layer.keys, layer._quantized_keys), (layer.values, layer._quantized_values)):
            packed = older._data._data  # two numbers of 4 bits in a byte
            assert packed.dtype is torch.uint8
            held += packed.numel() + sum(t.numel() * t.element_size() for t in (recent, older._scale, older._shift))
    assert run.generation["all"]["cache_bytes"] == held // 2


def test_tokens_that_a_given_cache_contains_are_told_apart(llama):
    ids = prompts(1, 20)
    cache = transformers.DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(ids[:, :15], past_key_values=cache)
    run, *_ = generated(llama, ids, past_key_values=cache, max_new_tokens=3, min_new_tokens=3)
    assert run.tokens.cached_tokens.tolist() == [15, 15]
    assert counts(run) == [(20, 3)]


def test_an_assistant_drafts_and_the_model_accepts(llama):
    torch.manual_seed(3)
    assistant = transformers.LlamaForCausalLM(config(max_position_embeddings=256)).eval()
    main, drafts = Passes(llama), Passes(assistant)
    ids = prompts(1, 16)
    plain = llama.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    main.began.clear()
    with tw.profile([llama, assistant], baseline_s=0.2) as run:
        sequences = llama.generate(
            ids, max_new_tokens=24, min_new_tokens=24, do_sample=False, assistant_model=assistant
        )
    main.remove()
    drafts.remove()
    assert sequences.tolist() == plain.tolist()
    row = run.tokens.iloc[0]
    assert (row.input_tokens, row.output_tokens) == (16, 24)
    assert row.drafted_tokens > 0
    # Each pass of the model makes one token of its own beside those that it accepts; what is beyond the end is cut.
    assert 24 <= row.accepted_tokens + len(main.began) <= 24 + row.drafted_tokens
    assert set(run.tokens.stage) == {"prefill", "decode", "draft"}
    draft_s = run.tokens[run.tokens.stage == "draft"].time_s.sum()
    inside_s = sum(e - b for b, e in zip(drafts.began, drafts.ended, strict=True)) / 1e9
    assert draft_s >= inside_s


def test_an_encoder_is_a_stage_of_its_own():
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=60, decoder_start_token_id=0
        )
    ).eval()
    encoder = Passes(model.encoder)
    ids = prompts(2, 14)
    mask = torch.ones_like(ids)
    mask[0, 10:] = 0
    run, *_ = generated(model, ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6)
    encoder.remove()
    assert counts(run) == [(10, 6), (14, 6)]
    encode = next(row for row in run.report.tokens if row.stage == "encode")
    assert encode.start_ns <= encoder.began[0] < encoder.ended[0] <= encode.end_ns
    assert set(run.layers[run.layers.stage == "encode"].fqn) & {"encoder", "encoder.block.0", "(unattributed)"} or any(
        fqn.startswith("encoder") for fqn in run.layers[run.layers.stage == "encode"].fqn
    )
    assert not any(fqn.startswith("encoder.") for fqn in run.layers[run.layers.stage == "decode"].fqn)


def test_a_pipeline(llama):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(60)} | {"<unk>": 59}, unk_token="<unk>")  # noqa: S106  no password
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")  # noqa: S106
    pipe = transformers.pipeline("text-generation", model=llama, tokenizer=tokenizer, device="cpu")
    with tw.profile(llama, baseline_s=0.2) as run:
        pipe("w5 w6 w7 w8", max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert counts(run) == [(4, 6)]


def test_generate_batch_serves_many_requests_in_shared_passes(llama):
    inputs = [prompts(1, length, seed=length)[0].tolist() for length in (5, 9, 17)]
    with tw.profile(llama, baseline_s=0.2) as run:
        results = llama.generate_batch(
            inputs=inputs,
            generation_config=transformers.GenerationConfig(
                max_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=PAD
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64),
        )
    assert sorted(counts(run)) == sorted((len(r.prompt_ids), len(r.generated_tokens)) for r in results.values())
    assert {"prefill", "decode"} <= set(run.tokens.stage)
    assert run.tokens.time_s.min() >= 0


def test_a_criterion_of_the_user_ends_rows_where_it_says(llama):
    class StopAt(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            long = input_ids.shape[1] - 8
            return torch.tensor([long >= 3, long >= 6])

    run, sequences, *_ = generated(
        llama, prompts(2, 8), max_new_tokens=12, min_new_tokens=12, do_sample=False,
        stopping_criteria=transformers.StoppingCriteriaList([StopAt()]),
    )  # fmt: skip
    assert sequences.shape[1] == 14
    assert counts(run) == [(8, 3), (8, 6)]


def test_a_call_that_fails_leaves_its_tokens_unknown_and_its_error_alone(llama):
    class Boom(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] > 12:
                raise ZeroDivisionError("from the user's criterion")
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with tw.profile(llama, baseline_s=0.2) as run:
        with pytest.raises(ZeroDivisionError, match="from the user's criterion") as caught:
            llama.generate(
                prompts(2, 10), max_new_tokens=9, min_new_tokens=9,
                stopping_criteria=transformers.StoppingCriteriaList([Boom()]),
            )  # fmt: skip
        llama.generate(prompts(1, 10), max_new_tokens=3, min_new_tokens=3)
    ours = Path(tw.__file__).parent
    assert not any(ours in frame.path.parents for frame in caught.traceback if isinstance(frame.path, Path))
    assert run.tokens.input_tokens.tolist() == [10] * 6
    assert run.tokens.output_tokens.isna().tolist() == [True] * 4 + [False] * 2
    assert run.generation["all"].isna()["energy_per_output_token"]
    assert run.generation["steady"]["output_tokens"] == 3


def test_outputs_are_those_without_a_session_and_nothing_stays_patched(llama):
    original = transformers.GenerationMixin.generate
    call = transformers.generation.stopping_criteria.StoppingCriteriaList.__call__
    alone = llama.generate(prompts(2, 10), max_new_tokens=9, do_sample=False)
    _, sequences, *_ = generated(llama, prompts(2, 10), max_new_tokens=9, do_sample=False)
    assert sequences.tolist() == alone.tolist()
    assert transformers.GenerationMixin.generate is original
    assert transformers.generation.stopping_criteria.StoppingCriteriaList.__call__ is call
    assert "generate" in vars(transformers.GenerationMixin)


def test_threads_that_generate_at_once_share_the_joules(llama):
    with tw.profile(llama) as run:
        threads = [
            threading.Thread(
                target=llama.generate,
                args=(prompts(1, 8, seed),),
                kwargs={"max_new_tokens": 150, "min_new_tokens": 150},
            )
            for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts(run) == [(8, 150)] * 3
    assert run.tokens.energy_j.sum() <= run.energy_j * (1 + 1e-9)
    assert run.tokens.energy_j.sum() >= 0.5 * run.energy_j


def test_a_session_without_layers_counts_tokens_too(llama):
    with tw.profile(llama, layers="off", baseline_s=0.2) as run:
        llama.generate(prompts(2, 8), max_new_tokens=200, min_new_tokens=200)
    assert counts(run) == [(8, 200)] * 2
    assert 0 < run.tokens.energy_j.sum() <= run.energy_j


def test_the_model_and_the_cache_are_not_kept_alive():
    model = transformers.LlamaForCausalLM(config(max_position_embeddings=64)).eval()
    with tw.profile(baseline_s=0.2) as run:
        model.generate(prompts(1, 8), max_new_tokens=5)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    assert len(run.tokens) == 2


def test_a_loop_of_ones_own(llama):
    ids = prompts(1, 40)
    with torch.no_grad(), tw.profile(llama, baseline_s=0.2) as run:
        for _ in range(30):
            with tw.stage("prefill"):
                out = llama(ids, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            for _ in range(7):
                with tw.stage("decode"):
                    out = llama(token, past_key_values=cache, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            run.add_tokens(input=40, output=8)
    assert counts(run) == [(40, 8)] * 30
    assert (run.tokens.time_s > 0).all()
    assert run.generation["all"]["decode_energy_per_output_token"] == pytest.approx(
        1e3 * run.tokens[run.tokens.stage == "decode"].energy_j.sum() / (30 * 7)
    )


def test_counts_that_are_none_are_refused(llama):
    with tw.profile(layers="off", baseline_s=0.2) as run:
        for wrong in (-1, 1.5, True, "3"):
            with pytest.raises(ConfigError, match="whole number of tokens"):
                run.add_tokens(input=wrong)
        run.add_tokens(input=3, output=2)
    assert run.tokens.time_s.isna().all()
    assert run.tokens.energy_j.isna().all()
