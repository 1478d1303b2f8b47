"""Parameters of instantiated configurations (without their weights) against the published totals."""

import os

import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without
from torchwatt.core.errors import ConfigError
from torchwatt.core.trace import ModelSize
from torchwatt.generation.generate_call import measure_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", reason="the models are its")
transformers = LazyModule("transformers")


def shape(hidden, inner, layers, heads, vocabulary, **more):
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "vocab_size": vocabulary, **more,
    }  # fmt: skip


# Configuration, and the model's published number of parameters (its files on the Hugging Face hub).
DENSE = {
    "Llama-2-7B": ("LlamaConfig", shape(4096, 11008, 32, 32, 32000), 6_738_415_616),
    "Llama-3-8B": ("LlamaConfig", shape(4096, 14336, 32, 32, 128256, num_key_value_heads=8), 8_030_261_248),
    "TinyLlama-1.1B": ("LlamaConfig", shape(2048, 5632, 22, 32, 32000, num_key_value_heads=4), 1_100_048_384),
    "SmolLM2-135M": (
        "LlamaConfig", shape(576, 1536, 30, 9, 49152, num_key_value_heads=3, tie_word_embeddings=True), 134_515_008,
    ),
    "Mistral-7B": ("MistralConfig", shape(4096, 14336, 32, 32, 32000, num_key_value_heads=8), 7_241_732_096),
    "Qwen2-0.5B": (
        "Qwen2Config", shape(896, 4864, 24, 14, 151936, num_key_value_heads=2, tie_word_embeddings=True), 494_032_768,
    ),
    "gemma-2b": (
        "GemmaConfig", shape(2048, 16384, 18, 8, 256000, num_key_value_heads=1, head_dim=256), 2_506_172_416,
    ),
    "phi-2": ("PhiConfig", shape(2560, 10240, 32, 32, 51200), 2_779_683_840),
    "gpt2": ("GPT2Config", {}, 124_439_808),
    "opt-125m": ("OPTConfig", {"word_embed_proj_dim": 768}, 125_239_296),
    "pythia-160m": ("GPTNeoXConfig", shape(768, 3072, 12, 12, 50304), 162_322_944),
    "t5-small": ("T5Config", {}, 60_506_624),
}  # fmt: skip


def on_meta(config, arguments):
    config = getattr(transformers, config)(**arguments)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config)


@pytest.mark.parametrize("name", DENSE)
def test_dense_models(name):
    config, arguments, published = DENSE[name]
    size = measure_model(on_meta(config, arguments))
    assert size.parameters == published
    assert size.active_parameters(0) == published
    assert (size.expert_parameters, size.experts) == (0, 0)


# The published active parameters are rounded; gpt-oss counts none of its embedding as active.
MIXTURES = {
    "Mixtral-8x7B": ("MixtralConfig", {}, 46_702_792_704, 12.9e9, 8, 2),
    "Qwen1.5-MoE-A2.7B": (
        "Qwen2MoeConfig",
        shape(2048, 5632, 24, 16, 151936, num_key_value_heads=16, moe_intermediate_size=1408,
              shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4),
        14_315_784_192, 2.7e9, 60, 4,
    ),
    "OLMoE-1B-7B": ("OlmoeConfig", {"intermediate_size": 1024}, 6_919_161_856, 1.3e9, 64, 8),
    "gpt-oss-120b": ("GptOssConfig", {}, 116_829_156_672, 5.13e9 + 201088 * 2880, 128, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts(name):
    config, arguments, published, active, experts, each = MIXTURES[name]
    size = measure_model(on_meta(config, arguments))
    assert size.parameters == published
    assert (size.experts, size.experts_per_token) == (experts, each)
    assert size.active_parameters(each) == pytest.approx(active, rel=0.03)
    assert size.active_parameters(experts) == published


def tiny(kind="Llama", **more):
    arguments = shape(32, 64, 2, 4, 60, pad_token_id=0, eos_token_id=2, bos_token_id=1, **more)
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**arguments)).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_weights_of_dynamically_quantised_layers_count():
    model = tiny()
    whole = measure_model(model).parameters
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    assert sum(p.numel() for p in model.parameters()) < whole
    assert measure_model(model).parameters == whole


def prompt(rows=1):
    return torch.randint(3, 60, (rows, 6), generator=torch.Generator().manual_seed(0))


def generated(*models, rows=1):
    with tw.profile(baseline_s=0.2) as run:
        for model in models:
            model.generate(prompt(rows), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return run


def test_the_session_records_each_size_once():
    llama, other = tiny(), tiny(tie_word_embeddings=True)
    run = generated(llama, llama, other)
    sizes = [ModelSize("LlamaForCausalLM", sum(p.numel() for p in model.parameters())) for model in (llama, other)]
    assert list(run.report.models) == sizes
    with pytest.raises(ConfigError, match=r"2 models generated in this run.*parameters="):
        run.against_estimate()
    assert run.against_estimate(parameters=5e6).parameters == 5_000_000


def test_an_assistant_is_not_the_model():
    model, assistant = tiny(), tiny(tie_word_embeddings=True)
    with tw.profile(baseline_s=0.2) as run:
        model.generate(prompt(), max_new_tokens=8, do_sample=False, assistant_model=assistant)
    assert [size.parameters for size in run.report.models] == [sum(p.numel() for p in model.parameters())]


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(32, 64, bias=False)

    def forward(self, hidden):
        return self.up(hidden)[..., :32]


class ListedExperts(nn.ModuleList):
    """Experts as modules, as models with code of their own have them; a token uses the first `used` of those routed."""

    def __init__(self, count, used):
        super().__init__(Expert() for _ in range(count))
        self.used = used

    def forward(self, hidden, index, weights):
        out = torch.zeros_like(hidden)
        for number in index[..., : self.used].unique().tolist():
            rows = (index[..., : self.used] == number).any(-1)
            out[rows] += self[number](hidden[rows])
        return out


def with_listed_experts(used):
    model = tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=4)
    for layer in model.model.layers:
        layer.mlp.experts = ListedExperts(4, used)
    return model


@pytest.mark.parametrize("used", [1, 2])
def test_active_parameters_by_the_calls_of_experts(used):
    model = with_listed_experts(used)
    total = sum(p.numel() for p in model.parameters())
    one_expert = 2 * 32 * 64  # in both layers
    with tw.profile(model, baseline_s=0.2) as run:
        model.generate(prompt(), max_new_tokens=40, min_new_tokens=40, do_sample=False)
    comparison = run.against_estimate()
    assert comparison.parameters == total
    assert comparison.active_parameters == total - (4 - used) * one_expert
    assert f"{used} of 4 experts a token, by their calls in decode" in repr(comparison)


def test_active_parameters_by_the_configuration():
    fused = tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=4)
    listed = with_listed_experts(1)
    for model, rows in ((fused, 1), (listed, 3)):  # calls for several tokens do not count routed tokens
        comparison = generated(model, rows=rows).against_estimate()
        experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        assert comparison.active_parameters == comparison.parameters - experts // 2
        assert "2 of 4 experts a token, by the configuration" in repr(comparison)


def test_routing_that_the_configuration_does_not_state_is_unknown():
    model = tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=4)
    stated = measure_model(model)
    vars(model.config)["num_experts_per_tok"] = None
    assert measure_model(model) == ModelSize("MixtralForCausalLM", stated.parameters, stated.expert_parameters, 4)
