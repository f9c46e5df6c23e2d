"""The catalogue of planted defects: of data, through the public door, and of networks, through the pure checks."""

from __future__ import annotations

from tests.checks.flow_defects import FLOW_DEFECTS
from tests.checks.folder_defects import FOLDER_DEFECTS, nested_class, odd_modes
from tests.checks.input_defects import INPUT_DEFECTS, dim, negatives, untouched
from tests.checks.learning_defects import LEARNING_DEFECTS
from tests.checks.model_defects import MODEL_DEFECTS
from tests.checks.nets import case, conv, mlp, transfer
from tests.checks.twin_defects import TWIN_DEFECTS, five_of_a_kind

DATA = [*FOLDER_DEFECTS, *INPUT_DEFECTS, *TWIN_DEFECTS]
MODELS = [*MODEL_DEFECTS, *FLOW_DEFECTS, *LEARNING_DEFECTS]
# Networks on which every check of the room must pass.
SOUND_NETWORKS = {
    "mlp": lambda seed: case(mlp(seed), seed),
    "conv": lambda seed: case(conv(seed), seed),
    "transfer": transfer,
}
# Folders on which nothing may fail, whatever is said of them in a warning.
SOUND_FOLDERS = {
    "as_it_is": untouched,
    "odd_modes": odd_modes,
    "nested": nested_class,
    "look_alikes": five_of_a_kind,
    "negatives": negatives,
    "dim": dim,
}
