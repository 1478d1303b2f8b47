"""What the tests of the Trainer's callback train: a file of its own, since importing transformers takes seconds."""

import time

import transformers

from tests.integrations.world import Busy
from torchwatt.integrations.trainer import EnergyCallback

__all__ = ["Clock", "EnergyCallback", "Greedy", "Model"]
STEP_S = 0.015


class Model(transformers.BertForSequenceClassification):
    def __init__(self, world, seconds=STEP_S):
        sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        super().__init__(transformers.BertConfig(intermediate_size=16, max_position_embeddings=16, **sizes))
        self.busy = Busy(world, seconds)

    def forward(self, input_ids=None, labels=None):
        out = super().forward(input_ids=input_ids, labels=labels)
        out.logits = self.busy(out.logits)
        return out


class Clock(transformers.TrainerCallback):
    """Notes when steps, evaluations and checkpoints were."""

    def __init__(self):
        self.steps, self.evaluated, self.saved, self.begun = [], [], [], 0

    def on_step_begin(self, *_, **__):
        self.begun = time.monotonic_ns()

    def on_step_end(self, *_, **__):
        self.steps.append((self.begun, time.monotonic_ns()))

    def on_evaluate(self, *_, **__):
        self.evaluated.append(time.monotonic_ns())

    def on_save(self, *_, **__):
        self.saved.append(time.monotonic_ns())


class Greedy(Model):
    """Has no memory for more than two sequences a batch, which it notices in its second forward call."""

    calls = 0
    first_ns = last_ns = 0  # when the first forward call of the first attempt began, and the last one of all

    def forward(self, input_ids=None, labels=None):
        self.calls += 1
        self.last_ns = time.monotonic_ns()
        self.first_ns = self.first_ns or self.last_ns
        if len(input_ids) > 2 and self.calls > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes")
        return super().forward(input_ids=input_ids, labels=labels)
