"""Hugging Face's image classification with its Trainer, as its example script has it, on timm's network.

    python hf_trainer.py SPLIT.csv WEIGHTS.pt EPOCHS SEED [frozen]

AdamW at the example's defaults (5e-5, linear decay, batches of 8), its crop and flip, scored after every epoch; the
whole network, or with `frozen` the classifier alone (at 1e-3, for 5e-5 hardly moves it). Prints a line of JSON; its
curve has seconds and validation accuracy after every epoch.
"""

import json
import sys
import tempfile
import time

import torch
from split_images import Images, network
from torchvision import transforms
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

epochs, seed, frozen = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:] == ["frozen"]
set_seed(seed)
last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
changed = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last])
plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last])
train, val = Images(sys.argv[1], "train", changed), Images(sys.argv[1], "val", plain)


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network(sys.argv[2], len(train.names))
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad = not frozen or name.startswith("classifier")

    def forward(self, pixel_values, labels=None):
        logits = self.network(pixel_values)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def metrics(found):
    return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}


class Watch(TrainerCallback):
    def on_evaluate(self, arguments, state, control, metrics, **others):
        curve.append((round(time.perf_counter() - start, 1), metrics["eval_accuracy"]))


curve = []
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        learning_rate=1e-3 if frozen else 5e-5,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=2,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        Classifier(),
        arguments,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=metrics,
        callbacks=[Watch()],
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
print(json.dumps({"accuracy": curve[-1][1], "train_s": seconds, "curve": curve}))
