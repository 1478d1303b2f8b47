"""Stages of trainers and encoders that libraries show by themselves, against hooks and counters of the test."""

import os
import time

import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", "accelerate", "lightning", reason="these are stages of transformers and Lightning")
transformers = LazyModule("transformers")
lightning = LazyModule("lightning.pytorch")


class Spin(nn.Module):
    """A model whose calls take as long as it says, in training and in evaluation."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.calls = {True: 0, False: 0}

    def forward(self, input_ids=None, labels=None):
        end_ns = time.thread_time_ns() + 3_000_000
        while time.thread_time_ns() < end_ns:
            pass
        self.calls[self.training] += 1
        logits = self.head(input_ids.float())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


DATA = [{"input_ids": torch.ones(4), "labels": torch.tensor(i % 2)} for i in range(32)]


def by_stage(run):
    rows = run.layers[run.layers.domain == "cpu"]
    return rows.groupby("stage").energy_self_j.sum()


def forward_stages(run):
    rows = run.layers[(run.layers.phase == "forward") & (run.layers.domain == "cpu")]
    return set(rows.stage)


def test_trainer_trains_evaluates_and_predicts(tmp_path):
    torch.set_num_threads(1)
    model = Spin()
    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=4, per_device_eval_batch_size=4, report_to="none",
        save_strategy="no", eval_strategy="epoch", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=DATA, eval_dataset=DATA[:16])
    train = transformers.Trainer.train
    with tw.profile(model, baseline_s=0.2) as run:
        trainer.train()
        trainer.predict(DATA[:8])
    assert model.calls == {True: 16, False: 2 * 4 + 2}
    assert forward_stages(run) == {"train", "validation", "test"}
    rows = run.layers[(run.layers.fqn == "head") & (run.layers.phase == "forward") & (run.layers.domain == "cpu")]
    calls = dict(zip(rows.stage, rows.calls, strict=True))
    assert all(
        calls[stage] in {None, n} or calls[stage] != calls[stage] for stage, n in (("validation", 8), ("test", 2))
    )
    shares = by_stage(run)
    assert shares["validation"] > 2 * shares["test"]
    assert transformers.Trainer.train is train


class Lit:
    """Made where Lightning is imported."""

    def __new__(cls):
        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Spin()

            def loss(self, batch):
                return self.net(**batch)["loss"]

            def training_step(self, batch):
                return self.loss(batch)

            def validation_step(self, batch):
                self.loss(batch)

            test_step = validation_step

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Module()


@pytest.mark.filterwarnings("ignore")
def test_lightning_fits_validates_and_tests(tmp_path):
    torch.set_num_threads(1)
    module = Lit()
    loader = torch.utils.data.DataLoader(DATA, batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    with tw.profile(module, baseline_s=0.2) as run:
        trainer.fit(module, loader, loader)
        trainer.test(module, loader, verbose=False)
    assert module.net.calls == {True: 8, False: 16}
    assert forward_stages(run) == {"train", "validation", "test"}
    shares = by_stage(run)
    # The work of forward calls is equal in the three; a training step has a backward call and an optimizer beside it.
    assert shares["validation"] == pytest.approx(shares["test"], rel=0.5)


def test_a_sentence_encoder_is_a_stage(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(30)}, unk_token="w29"))  # noqa: S106  no password
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w29")  # noqa: S106
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    with tw.profile(model, baseline_s=0.2) as run:
        vectors = model.encode(["w3 w4 w5", "w6"] * 500)
        time.sleep(0.05)
    assert vectors.shape == (1000, 16)
    assert "encode" in forward_stages(run)
    assert "" not in forward_stages(run)
