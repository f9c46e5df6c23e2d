"""A plan of five stages of which the last three train, for four epochs."""

from __future__ import annotations

from toolkit.plan import Recipe, TransferPlan

PLAN = TransferPlan(
    strategy="partial",
    backbone="a net",
    cut=2,
    taps=(4,),
    head="ridge",
    recipe=Recipe(lr=0.01),
    multipliers=(0, 0, 0.01, 0.01, 0.1, 1),
    epochs=4,
    views=1,
    augmentation="none",
    image_size=32,
    facts={},
    reasons=(),
)
