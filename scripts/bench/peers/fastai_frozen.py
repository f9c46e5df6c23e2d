"""fastai's frozen epochs, as its documentation has them: vision_learner, frozen body, fit_one_cycle.

    python fastai_frozen.py SPLIT.csv WEIGHTS.pt EPOCHS

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON.
"""

import json
import sys
import time

import pandas as pd
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

table, weights, epochs = pd.read_csv(sys.argv[1]), sys.argv[2], int(sys.argv[3])
set_seed(0, reproducible=True)
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
learner.freeze()
with learner.no_bar(), learner.no_logging():
    start = time.perf_counter()
    learner.fit_one_cycle(epochs, 2e-3)
    seconds = time.perf_counter() - start
    found = float(learner.validate()[1])
print(json.dumps({"accuracy": found, "train_s": seconds}))
