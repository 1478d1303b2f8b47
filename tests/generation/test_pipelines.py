"""Stages of diffusers' pipelines, against clocks around the models that they consist of."""

import json
import os
from collections import defaultdict
from time import thread_time

import pytest
import torch

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("diffusers", "transformers", reason="these are stages of diffusers")
diffusers = LazyModule("diffusers")
transformers = LazyModule("transformers")

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

STEPS = 8
POINTS = 6.0  # of the joules of all stages


def unet(**changes):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8, **changes,
    )  # fmt: skip


def stable_diffusion(folder):
    """Return a StableDiffusionPipeline of small models with random weights."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{each}</w>" for each in "abcdefghijklmnopqrstuvwxyz")]
    words = {each: i for i, each in enumerate((*letters, "<|startoftext|>", "<|endoftext|>"))}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
        bos_token_id=words["<|startoftext|>"], eos_token_id=words["<|endoftext|>"], pad_token_id=1,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet(),
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer(*files, model_max_length=77),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Clock:
    """Seconds and calls of methods, by the name of a stage. No code of torchwatt's."""

    def __init__(self):
        self.seconds, self.calls = defaultdict(float), defaultdict(int)

    def around(self, owner, name, stage):
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            began = thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[stage] += thread_time() - began
                self.calls[stage] += 1

        setattr(owner, name, timed)


def cpu_rows(run):
    rows = run.layers[(run.layers.domain == "cpu") & ~run.layers.fqn.isin(["(profiler)"])]
    return rows.assign(stage=rows.stage.fillna(""))


def check(run, clock):
    rows = cpu_rows(run)
    joules = rows.groupby("stage").energy_self_j.sum()
    named = {stage: joules.get(stage, 0.0) for stage in clock.seconds}
    for stage, seconds in clock.seconds.items():
        share = 100 * named[stage] / sum(named.values())
        assert share == pytest.approx(100 * seconds / sum(clock.seconds.values()), abs=POINTS), stage


def test_text_denoising_and_autoencoder_are_stages(tmp_path, one_thread):
    pipeline, clock = stable_diffusion(tmp_path), Clock()
    clock.around(pipeline.text_encoder, "forward", "text_encoder")
    clock.around(pipeline.unet, "forward", "denoise")
    clock.around(pipeline.vae.decoder, "forward", "vae")
    before = diffusers.StableDiffusionPipeline.encode_prompt, diffusers.AutoencoderKL.decode
    with tw.profile(pipeline.unet, live="off") as run:
        for _ in range(6):
            pipeline("a cat", num_inference_steps=STEPS, height=64, width=64, output_type="np")
    assert clock.calls == {"text_encoder": 12, "denoise": 6 * STEPS, "vae": 6}  # a prompt and an empty one
    check(run, clock)
    rows = cpu_rows(run)
    forward = rows[rows.phase == "forward"]
    assert set(forward[forward.fqn.str.contains("down_blocks") & forward.fqn.str.contains("attn")].stage) == {"denoise"}
    assert (diffusers.StableDiffusionPipeline.encode_prompt, diffusers.AutoencoderKL.decode) == before


def test_a_pipeline_that_is_made_during_the_run_and_fails_leaves_no_stage_open(tmp_path, one_thread):
    with tw.profile(live="off") as run:
        pipeline = stable_diffusion(tmp_path)

        def stop(*_):
            raise KeyError("enough")

        with pytest.raises(KeyError, match="enough"):
            pipeline("a cat", num_inference_steps=4, height=32, width=32, callback_on_step_end=stop)
        after = torch.nn.Linear(64, 64)
        for _ in range(50):
            after(torch.randn(64, 64))
    rows = cpu_rows(run)
    assert {"text_encoder", "denoise"} <= set(rows.stage)
    named = rows[rows.module_class == "Linear"]
    assert "" in set(named[~named.fqn.str.contains(r"\.", regex=True)].stage)


@pytest.mark.parametrize("shown", [True, False])
def test_a_loop_over_a_progress_bar_is_denoising(shown, one_thread, capfd):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=not shown)
    with tw.profile(net, live="off") as run:
        pipeline(num_inference_steps=STEPS, output_type="np")
        net(torch.randn(1, 3, 16, 16), 1)
    rows = cpu_rows(run)
    calls = rows[(rows.fqn == "conv_in") & (rows.phase == "forward")].set_index("stage").calls
    assert calls["denoise"] == STEPS
    assert calls[""] == 1
    assert (f"{STEPS}/{STEPS}" in capfd.readouterr().err) == shown
