"""PyTorch's transfer learning tutorial, "ConvNet as fixed feature extractor": a frozen network in every epoch.

    python tutorial_frozen.py SPLIT.csv WEIGHTS.pt EPOCHS

Its transforms, SGD of 0.001 with momentum 0.9, a tenth after 7 epochs, validation after each, the best epoch kept; its
batches of 4 are 32 here, which is faster, and its 25 epochs as many as are asked for. Prints a line of JSON.
"""

import json
import sys
import time

import torch
from split_images import Images, accuracy_on, network
from torchvision import transforms

epochs = int(sys.argv[3])
last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
changed = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last])
plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last])
train, val = Images(sys.argv[1], "train", changed), Images(sys.argv[1], "val", plain)
torch.manual_seed(0)
model = network(sys.argv[2], len(train.names))
for name, parameter in model.named_parameters():
    parameter.requires_grad = name.startswith("classifier")
loaders = [torch.utils.data.DataLoader(some, batch_size=32, shuffle=True, num_workers=4) for some in (train, val)]
optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.001, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
best = 0.0
start = time.perf_counter()
for _ in range(epochs):
    model.train()
    for images, labels in loaders[0]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    scheduler.step()
    best = max(best, accuracy_on(model, loaders[1]))
print(json.dumps({"accuracy": best, "train_s": time.perf_counter() - start}))
