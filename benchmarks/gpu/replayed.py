"""A training run against `tw.replay` of the same model: what each layer draws in its run and in a loop of its own."""

import time

import torch
from models import language
from truth import RUN_S, compare, told

import torchwatt as tw
from torchwatt.offline.layer_power import ReplayTiming


def main():
    model, step = language("cuda")
    for _ in range(5):
        step()
    x = torch.randint(0, 8192, (48, 512), device="cuda")

    def call():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            model(x)

    loops = tw.replay(model, call, timing=ReplayTiming(0.6, 0.8, 0.1, 1))
    with tw.profile(model, name="language") as run:
        end = time.monotonic() + RUN_S
        while time.monotonic() < end:
            step()
        torch.cuda.synchronize()
    truth = {}
    for one in loops:
        for slot in one.slots[:2]:
            truth[slot.fqn, slot.phase] = one.power_w * one.call_s, one.call_s
    compare("language model against replay", run, truth)
    told(run)


if __name__ == "__main__":
    main()
