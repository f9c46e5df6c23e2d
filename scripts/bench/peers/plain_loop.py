"""The loop that everybody writes: the whole network with a new Linear, AdamW, one rate for all, no schedule.

    python plain_loop.py SPLIT.csv WEIGHTS.pt EPOCHS SEED [LR]

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON; its
curve has seconds and validation accuracy after every epoch.
"""

import json
import sys
import time

import torch
from split_images import Images, accuracy_on, network
from torchvision import transforms

epochs, seed = int(sys.argv[3]), int(sys.argv[4])
lr = float(sys.argv[5]) if len(sys.argv) > 5 else 3e-4
torch.manual_seed(seed)
last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
changed = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last])
plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last])
images = Images(sys.argv[1], "train", changed)
model = network(sys.argv[2], len(images.names))
train = torch.utils.data.DataLoader(images, batch_size=32, shuffle=True, num_workers=2)
val = torch.utils.data.DataLoader(Images(sys.argv[1], "val", plain), batch_size=32, num_workers=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
curve = []
start = time.perf_counter()
for _ in range(epochs):
    model.train()
    for inputs, labels in train:
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    curve.append((round(time.perf_counter() - start, 1), round(accuracy_on(model, val), 4)))
print(json.dumps({"accuracy": curve[-1][1], "train_s": curve[-1][0], "curve": curve}))
