"""Parameter groups: all of them from step 0, in the ratio of the notes at every step, and decay where it belongs."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from tests.training.tiny import bare_trainer, folder_data, tiny_backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.backbones.taps import tap_widths
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec, Recipe
from toolkit.training.groups import parameter_groups, rates_table
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork
from toolkit.training.schedule import warmup_cosine

NORMS = ("BatchNorm", "LayerNorm", "GroupNorm")


class Rates(pl.Callback):
    """Records (step, part, kind, rate, weight decay) as each batch begins."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[tuple[str, str], tuple[float, float]]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.global_step] = {
            (group["name"], group["kind"]): (group["lr"], group["weight_decay"])
            for group in trainer.optimizers[0].param_groups
        }


def assert_ratios(seen: dict, steps: int) -> None:
    assert sorted(seen) == list(range(steps))
    for rates in seen.values():
        assert [name for name, _ in rates] == ["stage 1"] * 2 + ["stage 2"] * 2 + ["stage 3"] * 2 + ["head"] * 2
        head = rates["head", "weights"][0]
        assert head > 0
        for (name, kind), (rate, decay) in rates.items():
            wanted = {"stage 1": 0.01, "stage 2": 0.01, "stage 3": 0.1, "head": 1.0}[name]
            assert rate / head == pytest.approx(wanted, rel=1e-12)
            assert decay == (0.03 if kind == "weights" else 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_ratios_hold_at_every_step_and_after_a_resume(tmp_path, optimizer):
    settings = {"cut": 1, "recipe": Recipe(lr=0.2, optimizer=optimizer, weight_decay=0.03, warmup=0.25)}
    whole, first, second = Rates(), Rates(), Rates()
    data = {"batch_size": 3}  # 21 training images: 7 steps an epoch
    bare_trainer(tmp_path, max_epochs=4, callbacks=[whole]).fit(
        TransferModule(tiny_backbone(), 3, **settings), folder_data(tmp_path / "photos", **data)
    )
    assert_ratios(whole.seen, 28)

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 9:
                trainer.save_checkpoint(tmp_path / "nine.ckpt")
                raise KeyError

    with pytest.raises(KeyError):
        bare_trainer(tmp_path, max_epochs=4, callbacks=[first, Stops()]).fit(
            TransferModule(tiny_backbone(), 3, **settings), folder_data(tmp_path / "photos", **data)
        )
    bare_trainer(tmp_path, max_epochs=4, callbacks=[second]).fit(
        TransferModule(tiny_backbone(), 3, **settings),
        folder_data(tmp_path / "photos", **data),
        ckpt_path=tmp_path / "nine.ckpt",
    )
    assert {**first.seen, **second.seen} == whole.seen
    assert min(second.seen) == 9
    heads = [rates["head", "weights"][0] for _, rates in sorted(whole.seen.items())]
    assert heads == pytest.approx([0.2 * warmup_cosine(step, total_steps=28, warmup_steps=7) for step in range(28)])
    assert heads[0] == pytest.approx(0.2 / 8) and max(heads) == pytest.approx(0.2) and heads[-1] < 0.01


def test_the_schedule_counts_optimizer_steps(tmp_path):
    rates = Rates()
    module = TransferModule(tiny_backbone(), 3, cut=1, recipe=Recipe(lr=0.2, weight_decay=0.03))
    bare_trainer(tmp_path, max_epochs=4, accumulate_grad_batches=3, callbacks=[rates]).fit(
        module, folder_data(tmp_path / "photos", batch_size=3)
    )
    assert_ratios(rates.seen, 12)  # 7 batches an epoch are 3 steps


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/convnext_atto", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
def test_every_trainable_parameter_is_in_one_group(name, strategy):
    backbone = build_backbone(name, pretrained=False)
    spec = FreezeSpec.from_scratch(len(backbone)) if strategy == "scratch" else None
    spec = spec or FreezeSpec.at_cut(len(backbone), len(backbone) - 2 if strategy == "partial" else 0)
    network = TransferNetwork(backbone, LinearHead(tap_widths(backbone, None), 3), spec)
    groups = parameter_groups(network, Recipe(lr=1.0, weight_decay=0.1))
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in network.parameters() if p.requires_grad}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    assert all(value == 0 for name, value in by_name.items() if name.endswith("bias"))
    norms = [m for m in network.modules() if any(kind in type(m).__name__ for kind in NORMS)]
    assert norms and all(decay[id(p)] == 0 for m in norms for p in m.parameters() if p.requires_grad)
    layers = [m.weight for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad]
    assert layers and all(decay[id(weight)] == 0.1 for weight in layers)
    frozen = {id(p) for stage in network.stages[: spec.cut] for p in stage.parameters()}
    assert not frozen & set(held) and bool(frozen) == (strategy == "partial")


def test_rates_of_scratch_are_the_heads():
    network = TransferNetwork(tiny_backbone(), LinearHead((16,), 3), FreezeSpec.from_scratch(4))
    assert {group["lr"] for group in parameter_groups(network, Recipe(lr=0.5, weight_decay=0.1))} == {0.5}


def test_the_table_says_what_trains_at_which_rate():
    network = TransferNetwork(tiny_backbone(), LinearHead((16,), 3), FreezeSpec.at_cut(4, 2))
    lines = rates_table(parameter_groups(network, Recipe(lr=0.001, weight_decay=0.05))).splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells == [
        ["part", "tensors", "parameters", "multiplier", "lr", "weight decay"],
        ["stage 2", "weights", "1,728", "×0.01", "1e-05", "0.05"],
        ["stage 2", "biases and norms", "32", "×0.01", "1e-05", "0"],
        ["stage 3", "weights", "2,304", "×0.1", "0.0001", "0.05"],
        ["stage 3", "biases and norms", "32", "×0.1", "0.0001", "0"],
        ["head", "weights", "48", "×1", "0.001", "0.05"],
        ["head", "biases and norms", "3", "×1", "0.001", "0"],
    ]


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 0), (1, 0), (1, 1), (10, 10), (3, 2)])
def test_warmup_cosine(total, warmup):
    factors = [warmup_cosine(step, total_steps=total, warmup_steps=warmup) for step in range(total + 2)]
    for step, factor in enumerate(factors[:total]):
        if step < warmup:
            assert factor == pytest.approx((step + 1) / (warmup + 1))
        else:
            share = torch.tensor((step - warmup) / max(1, total - warmup), dtype=torch.float64)
            assert factor == pytest.approx(float((1 + torch.cos(torch.pi * share)) / 2))
    assert all(0 < factor <= 1 for factor in factors[:total])
    if warmup < total:
        assert factors[warmup] == 1.0 and factors[total] == factors[total + 1] == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
def test_tokens_tables_and_scales_are_not_decayed(name):
    backbone = build_backbone(name, pretrained=False, image_size_px=32)
    head = LinearHead(tap_widths(backbone, None), 3)
    groups = parameter_groups(TransferNetwork(backbone, head, FreezeSpec.at_cut(len(backbone), 0)), Recipe())
    names = {id(p): path for stage in backbone.stages for path, p in stage.named_parameters()}
    odd = ("token", "embed", "table", "scale", "bias")
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"] if id(p) in names}
    assert decayed and not [path for path in decayed if any(word in path.rpartition(".")[2] for word in odd)]
    learning = sum(len(group["params"]) for group in groups)
    assert learning == len(names) + 2, "and all of them learn"
