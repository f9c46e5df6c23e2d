"""Whether a network can be trained as a recipe says: known before any image is read."""

from __future__ import annotations

from toolkit.backbones.backbone import Backbone
from toolkit.errors import SettingError
from toolkit.plan import Recipe
from toolkit.training.blend import HEIGHT_AND_WIDTH, NO_MAP
from toolkit.training.drop_path import skippable


def check_able(backbone: Backbone, recipe: Recipe, cut: int) -> None:
    """Raise SettingError where a recipe wants of the stages from `cut` on what they do not have: blocks that can be
    skipped (drop_path), a map that rectangles can be cut from (cutmix); where every stage trains, the image is one."""
    if recipe.drop_path is not None and not skippable(backbone.stages[cut:]):
        raise SettingError(f"drop_path: no stage of {backbone.name} that trains has blocks that can be skipped")
    if recipe.cutmix and 0 < cut < len(backbone):
        is_map = len(backbone.stage_shapes()[cut - 1]) == 3 and backbone.layout in HEIGHT_AND_WIDTH
        if not is_map:
            raise SettingError(NO_MAP)
