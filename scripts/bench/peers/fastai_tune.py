"""fastai's fine_tune with its defaults: one frozen epoch, then EPOCHS of the whole network with discriminative rates.

    python fastai_tune.py SPLIT.csv WEIGHTS.pt EPOCHS SEED

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON; its
curve has seconds and validation accuracy after every epoch.
"""

import json
import sys
import time

import pandas as pd
import torch
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

table, weights, epochs, seed = pd.read_csv(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
curve = []


class Watch(Callback):
    """Notes the time and the last column of the recorder, which is the accuracy, after each epoch."""

    order = 60  # after the recorder

    def after_epoch(self):
        curve.append((round(time.perf_counter() - start, 1), round(float(self.recorder.log[-1]), 4)))


set_seed(seed, reproducible=True)
table["is_valid"] = table["split"] == "val"
loaders = ImageDataLoaders.from_df(
    table,
    path="/",
    fn_col="path",
    label_col="label",
    valid_col="is_valid",
    bs=32,
    num_workers=2,
    item_tfms=Resize(256),
    batch_tfms=[*aug_transforms(size=224), Normalize.from_stats((0.5,) * 3, (0.5,) * 3)],
)
learner = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=False, normalize=False, metrics=accuracy)
body = learner.model[0].model
missing, unexpected = body.load_state_dict(torch.load(weights, weights_only=True), strict=False)
assert not missing and set(unexpected) <= {"classifier.weight", "classifier.bias"}, (missing, unexpected)
with learner.no_bar(), learner.no_logging():
    learner.recorder.add_time = False
    learner.add_cb(Watch())
    start = time.perf_counter()
    learner.fine_tune(epochs)
    seconds = time.perf_counter() - start
    found = float(learner.validate()[1])
print(json.dumps({"accuracy": found, "train_s": seconds, "curve": curve}))
