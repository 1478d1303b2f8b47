"""Programs as libraries write them: generation by transformers, adapters by peft; the models are small and random."""

import warnings

import torch

from tests.programs.truth import Parts, program

END = 255


def language_model(width, depth):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": 256, "n_positions": 256, "n_embd": width, "n_layer": depth, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=END, eos_token_id=END)).eval()


def decode(parts, prompts, generate):
    for _ in parts.rounds(prompts):
        text = generate(torch.randint(0, END, (1, 32)), max_new_tokens=48, min_new_tokens=48, do_sample=False)
    print(text.shape[1], text[0, -1].item())


def stage_by_cache(*_args, past_key_values=None, **_kwargs):
    """Return the stage of a call of a language model: the first one of a prompt finds an empty cache."""
    return "decode" if past_key_values is not None and past_key_values.get_seq_length() else "prefill"


@program(heavy=True)
def transformers_generate(parts: Parts):
    """`generate` with a cache; each call of the model is a step."""
    model = language_model(128, 4)
    parts.count(model)
    parts.time_calls(model, stage_by_cache)
    return model, lambda: decode(parts, 6, model.generate)


@program(heavy=True)
def transformers_generate_with_assistant(parts: Parts):
    """`generate(assistant_model=...)`: each call of either model is a step."""
    model, assistant = language_model(192, 6), language_model(64, 2)
    parts.time_calls(model, stage_by_cache)
    parts.time_calls(assistant, lambda *_, **__: "draft")

    def generate(prompt, **options):
        return model.generate(prompt, assistant_model=assistant, **options)

    return {"model": model, "assistant_model": assistant}, lambda: decode(parts, 4, generate)


@program(heavy=True, needs="peft")
def peft_adapters(parts: Parts):
    """LoRA of a language model's attention, by peft."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft and transformers deprecate
        model = get_peft_model(
            language_model(128, 4).train(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
        )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    parts.count(model)

    def run():
        for _ in parts.rounds(25):
            x = torch.randint(0, END, (4, 64))
            optimizer.zero_grad()
            parts.start("forward")
            loss = model(input_ids=x, labels=x).loss
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            optimizer.step()
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.4f}")

    return model, run
