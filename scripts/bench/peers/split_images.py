"""What the plain PyTorch peers share: the split, its images as a data set, the network with the toolkit's weights."""

import csv

import timm
import torch
from PIL import Image


class Images(torch.utils.data.Dataset):
    """(image, label) of the rows of one split of a CSV of path,label,split; `transform` may be set later."""

    def __init__(self, file, split, transform=None):
        with open(file, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        self.names = sorted({row["label"] for row in rows})
        self.rows = [row for row in rows if row["split"] == split]
        self.transform = transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        image = Image.open(row["path"]).convert("RGB")
        return self.transform(image) if self.transform else image, self.names.index(row["label"])


def network(weights, n_classes):
    """Return timm's tf_efficientnet_lite0 with these weights (a state dict) and a new Linear."""
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.classifier = torch.nn.Linear(model.classifier.in_features, n_classes)
    return model


def accuracy_on(model, loader):
    """Return the share of right answers."""
    model.eval()
    hits = 0
    with torch.inference_mode():
        for images, labels in loader:
            hits += int((model(images).argmax(1) == labels).sum())
    return hits / len(loader.dataset)
