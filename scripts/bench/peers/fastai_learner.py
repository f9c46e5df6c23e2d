"""What the scripts of fastai share: its learner on a split, with the weights that the toolkit has."""

import pandas as pd
import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)


def learner_of(split: str, weights: str, seed: int) -> Learner:
    """Return a learner with a frozen body, its data as fastai's documentation augments them.

    split: a CSV of path,label,split. weights: the state dict of timm's tf_efficientnet_lite0.
    """
    table = pd.read_csv(split)
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
    learner.freeze()
    return learner
