"""What an expert writes in twenty lines: timm's features once, scikit-learn's logistic regression on top.

    python expert_lines.py SPLIT.csv WEIGHTS.pt

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON.
"""

import csv
import json
import sys
import time

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from timm.data import create_transform, resolve_data_config

with open(sys.argv[1], encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True), strict=False)
transform = create_transform(**resolve_data_config({}, model=model))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(rows)

    def __getitem__(self, index):
        return transform(Image.open(rows[index]["path"]).convert("RGB"))


start = time.perf_counter()
with torch.inference_mode():
    loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=2)
    features = torch.cat([model(batch) for batch in loader]).numpy()
labels = np.array([row["label"] for row in rows])
train = np.array([row["split"] == "train" for row in rows])
classifier = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
seconds = time.perf_counter() - start
print(json.dumps({"accuracy": classifier.score(features[~train], labels[~train]), "train_s": seconds}))
