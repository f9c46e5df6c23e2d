"""Parameter groups: one learning-rate multiplier a stage, weight decay only where it belongs."""

from __future__ import annotations

from typing import Any

from torch import nn

from toolkit.plan import Recipe
from toolkit.training.network import TransferNetwork


def parameter_groups(network: TransferNetwork, recipe: Recipe) -> list[dict[str, Any]]:
    """Return optimizer groups for everything that trains, all of them from step 0.

    A stage and the head give one group with weight decay and one without (biases and the scales of
    normalisation layers are not decayed: He et al. 2019, "Bag of Tricks", section 3.1; nor are class tokens, tables of
    positions and scales of layers). Keys beside torch's own:
    `name` ("stage 6", "head"), `multiplier`, and `depth`, the number of trained parts above it; `lr` is the head's rate
    × the multiplier, and a schedule that multiplies every group by one factor keeps the ratios.
    """
    weight_decay = recipe.weight_decay
    parts: list[tuple[str, nn.Module, float]] = [
        (f"stage {index}", stage, rule.multiplier)
        for index, (stage, rule) in enumerate(zip(network.stages, network.spec.rules, strict=True))
        if rule.trainable
    ]
    parts.append(("head", network.head, network.spec.head_multiplier))
    groups = []
    for number, (name, module, multiplier) in enumerate(parts, start=1):
        learning = [(path, p) for path, p in module.named_parameters() if p.requires_grad]
        decayed = [p for path, p in learning if is_weight(path, p)]
        spared = [p for path, p in learning if not is_weight(path, p)]
        for parameters, decay, kind in ((decayed, weight_decay, "weights"), (spared, 0.0, "biases and norms")):
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "lr": recipe.lr * multiplier,
                        "weight_decay": decay,
                        "name": name,
                        "kind": kind,
                        "multiplier": multiplier,
                        "depth": len(parts) - number,
                    }
                )
    return groups


def is_weight(path: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter multiplies features: a matrix or a kernel that its module calls a weight."""
    return parameter.ndim > 1 and path.rpartition(".")[2].endswith("weight")


def rates_table(groups: list[dict[str, Any]]) -> str:
    """Return the table of groups that a run prints: part, what, parameters, multiplier, rate, weight decay."""
    rows = [("part", "tensors", "parameters", "multiplier", "lr", "weight decay")]
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        rates = (f"×{group['multiplier']:g}", f"{group['lr']:.3g}", f"{group['weight_decay']:g}")
        rows.append((group["name"], group["kind"], f"{count:,}", *rates))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
