"""The loop that everybody writes: the whole network with a new Linear, AdamW, one rate for all, no schedule.

    python plain_loop.py SPLIT.csv WEIGHTS.pt EPOCHS SEED [LR]

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON; its
curve has seconds and validation accuracy after every epoch.
"""

import csv
import json
import sys
import time

import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

with open(sys.argv[1], encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
epochs, seed = int(sys.argv[3]), int(sys.argv[4])
lr = float(sys.argv[5]) if len(sys.argv) > 5 else 3e-4
torch.manual_seed(seed)
names = sorted({row["label"] for row in rows})
model = timm.create_model("tf_efficientnet_lite0")
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
model.classifier = nn.Linear(model.classifier.in_features, len(names))
last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
changed = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last])
plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last])


class Images(torch.utils.data.Dataset):
    def __init__(self, split, transform):
        self.rows, self.transform = [row for row in rows if row["split"] == split], transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return self.transform(Image.open(row["path"]).convert("RGB")), names.index(row["label"])


train = torch.utils.data.DataLoader(Images("train", changed), batch_size=32, shuffle=True, num_workers=2)
val = torch.utils.data.DataLoader(Images("val", plain), batch_size=32, num_workers=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
curve = []
start = time.perf_counter()
for _ in range(epochs):
    model.train()
    for images, labels in train:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    hits = 0
    with torch.inference_mode():
        for images, labels in val:
            hits += int((model(images).argmax(1) == labels).sum())
    curve.append((round(time.perf_counter() - start, 1), round(hits / len(val.dataset), 4)))
print(json.dumps({"accuracy": curve[-1][1], "train_s": curve[-1][0], "curve": curve}))
