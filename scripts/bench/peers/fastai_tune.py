"""fastai's fine_tune with its defaults: one frozen epoch, then EPOCHS of the whole network with discriminative rates.

    python fastai_tune.py SPLIT.csv WEIGHTS.pt EPOCHS SEED

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON; its
curve has seconds and validation accuracy after every epoch.
"""

import json
import sys
import time

from fastai.vision.all import Callback
from fastai_learner import learner_of

learner, epochs = learner_of(sys.argv[1], sys.argv[2], int(sys.argv[4])), int(sys.argv[3])
curve = []


class Watch(Callback):
    """Notes the time and the last column of the recorder, which is the accuracy, after each epoch."""

    order = 60  # after the recorder

    def after_epoch(self):
        curve.append((round(time.perf_counter() - start, 1), round(float(self.recorder.values[-1][-1]), 4)))


with learner.no_bar(), learner.no_logging():
    learner.add_cb(Watch())
    start = time.perf_counter()
    learner.fine_tune(epochs)
    seconds = time.perf_counter() - start
    found = float(learner.validate()[1])
print(json.dumps({"accuracy": found, "train_s": seconds, "curve": curve[: epochs + 1]}))  # the last is of validate
