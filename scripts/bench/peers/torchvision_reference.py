"""Training as torchvision's reference script for classification does it by default: all of the network, from weights.

    python torchvision_reference.py SPLIT.csv WEIGHTS.pt EPOCHS

Its presets of transforms, batches of 32, SGD with momentum 0.9 and a weight decay of 1e-4, a tenth of the rate every 30
epochs, its evaluation after each epoch, its cross-entropy without smoothing. Its rate of 0.1 is for training from
scratch on eight GPUs; here it is 0.01. Prints a line of JSON.
"""

import json
import sys
import time

import torch
from split_images import Images, accuracy_on, network
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

epochs = int(sys.argv[3])
torch.manual_seed(0)
to_numbers = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
bilinear = InterpolationMode.BILINEAR
changed = v2.Compose(
    [v2.RandomResizedCrop(224, interpolation=bilinear, antialias=True), v2.RandomHorizontalFlip(), *to_numbers]
)
plain = v2.Compose([v2.Resize(256, interpolation=bilinear, antialias=True), v2.CenterCrop(224), *to_numbers])
train, val = Images(sys.argv[1], "train", changed), Images(sys.argv[1], "val", plain)
sampler = torch.utils.data.RandomSampler(train)
loader = torch.utils.data.DataLoader(train, batch_size=32, sampler=sampler, num_workers=2)
judge = torch.utils.data.DataLoader(val, batch_size=32, num_workers=2)
model = network(sys.argv[2], len(train.names))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
accuracy = 0.0
start = time.perf_counter()
for _ in range(epochs):
    model.train()
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
    accuracy = accuracy_on(model, judge)
print(json.dumps({"accuracy": accuracy, "train_s": time.perf_counter() - start}))
