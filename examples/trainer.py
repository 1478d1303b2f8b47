"""What did fine-tuning use? A two-layer BERT in transformers' Trainer, made from its config: CPU only, no downloads.

python examples/trainer.py [--region FRA] [--energy-budget-j 50] [--epochs 3] [--csv DIR]
"""

import argparse
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from torchwatt.integrations.trainer import EnergyCallback

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--region")
parser.add_argument("--energy-budget-j", type=float)
parser.add_argument("--csv")
asked = parser.parse_args()

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = BertForSequenceClassification(BertConfig(intermediate_size=128, max_position_embeddings=32, **sizes))
words = torch.randint(1, 64, (256, 24))
data = [{"input_ids": row, "labels": (row > 40).sum() > 9} for row in words]
data = [{**row, "labels": row["labels"].long()} for row in data]

energy = EnergyCallback(region=asked.region, energy_budget_j=asked.energy_budget_j, csv=asked.csv)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            num_train_epochs=asked.epochs,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=8,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data[:192],
        eval_dataset=data[192:],
        callbacks=[energy],
    )
    trainer.train()

print(energy.run)
print(energy.run.epochs.round(3).to_string(index=False))
