"""fastai's frozen epochs, as its documentation has them: vision_learner, frozen body, fit_one_cycle.

    python fastai_frozen.py SPLIT.csv WEIGHTS.pt EPOCHS

SPLIT.csv: path,label,split. WEIGHTS.pt: the state dict of timm's tf_efficientnet_lite0. Prints a line of JSON.
"""

import json
import sys
import time

from fastai_learner import learner_of

learner, epochs = learner_of(sys.argv[1], sys.argv[2], 0), int(sys.argv[3])
with learner.no_bar(), learner.no_logging():
    start = time.perf_counter()
    learner.fit_one_cycle(epochs, 2e-3)
    seconds = time.perf_counter() - start
    found = float(learner.validate()[1])
print(json.dumps({"accuracy": found, "train_s": seconds}))
