"""Fine-tuning as timm's train script does it: its loader and augmentation, optimizer, schedule and average of weights.

    python timm_train.py SPLIT.csv WEIGHTS.pt EPOCHS SEED

AdamW at 5e-4 with a cosine by epochs after one of warm-up (the script's own SGD at 0.05 is for training from scratch),
batches of 32, its RandAugment policy rand-m9-mstd0.5. Prints a line of JSON; its curve has seconds and validation
accuracy after every epoch.
"""

import json
import sys
import time

import timm.utils
import torch
from split_images import Images, accuracy_on, network
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

epochs, seed = int(sys.argv[3]), int(sys.argv[4])
timm.utils.random_seed(seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
train, val = Images(sys.argv[1], "train"), Images(sys.argv[1], "val")
shared = {
    "input_size": (3, 224, 224),
    "batch_size": 32,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "num_workers": 2,
    "use_prefetcher": False,
    "device": device,
}
loader = create_loader(train, is_training=True, auto_augment="rand-m9-mstd0.5", **shared)
judge = create_loader(val, is_training=False, crop_pct=0.875, **shared)
model = network(sys.argv[2], len(train.names)).to(device)
optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
scheduler, epochs_in_all = create_scheduler_v2(
    optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-6, updates_per_epoch=len(loader)
)
curve = []
start = time.perf_counter()
for epoch in range(min(epochs, epochs_in_all)):
    model.train()
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step(epoch + 1)
    curve.append((round(time.perf_counter() - start, 1), round(accuracy_on(model, judge), 4)))
print(json.dumps({"accuracy": curve[-1][1], "train_s": curve[-1][0], "curve": curve}))
