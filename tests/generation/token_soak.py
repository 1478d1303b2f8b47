"""Generates many tokens in one session and prints what it keeps.

    python -m tests.generation.token_soak KIND N [--folder DIR] [--traced]

KIND is `generate` (transformers' own) or `loop` (stages of one's own and `run.add_tokens`). The last line is JSON.
"""

import argparse
import gc
import json
import os
import tracemalloc
from pathlib import Path

import psutil
import torch

import torchwatt as tw
from torchwatt.views import to_payload

POINTS = 10  # how often memory is looked at


def small_llama():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def generate(model, run, tokens):
    """Make requests of 50 tokens, eight at a time."""
    for _ in range(tokens // (8 * 50)):
        model.generate(torch.randint(3, 60, (8, 6)), max_new_tokens=50, min_new_tokens=50, do_sample=False)


def loop(model, run, tokens):
    """Make requests of 50 tokens with a stage for each pass and work of one's own between them."""
    x = torch.randn(1, 16)
    for _ in range(tokens // 50):
        with tw.stage("prefill"):
            model(x)
        for _ in range(49):
            with tw.stage("decode"):
                model(x)
            x = x.roll(1)
        run.add_tokens(input=6, output=50)


KINDS = {"generate": (small_llama, generate), "loop": (lambda: torch.nn.Linear(16, 16), loop)}


def sizes(folder):
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def main(kind, tokens, folder=None, traced=False):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make, work = KINDS[kind]
    model = make()
    rss, heap, largest = [], [], []
    files = {} if folder is None else {"csv": Path(folder) / "audit", "journal": Path(folder) / "journal"}
    with torch.no_grad(), tw.profile(model, **files) as run:
        for i in range(POINTS):
            work(model, run, tokens // POINTS)
            gc.collect()
            rss.append(psutil.Process().memory_info().rss)
            if traced:
                heap.append(tracemalloc.get_traced_memory()[0])
            if traced and i == 0:
                tracemalloc.start()
                before = tracemalloc.take_snapshot()
        if traced:
            after = tracemalloc.take_snapshot()
            largest = [str(each) for each in after.compare_to(before, "lineno")[:12]]
    counts = run.generation["all"]
    return {
        "rss": rss, "heap": heap, "largest": largest, "output_tokens": counts["output_tokens"],
        "requests": counts["requests"],
        "payload": len(json.dumps(to_payload(run.report))),
        "duration_s": run.report.duration_s,
        "files": {} if folder is None else sizes(Path(folder)),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("tokens", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--traced", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(main(asked.kind, asked.tokens, asked.folder, asked.traced)))  # noqa: T201
