"""What a Recipe asks for happens: blends, averages, the pull to the start, depth, norms, gradual unfreezing."""

from __future__ import annotations

import re
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.features.small import family
from tests.training.tiny import assert_equal, bare_trainer, changed, copied, folder_data, prefix_state, tiny_backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.errors import SettingError
from toolkit.features.prefix import Activations
from toolkit.plan import Recipe
from toolkit.training.average import WeightAverage
from toolkit.training.blend import blend
from toolkit.training.drop_path import set_drop_path
from toolkit.training.module import TransferModule
from toolkit.training.network import BATCH_NORMS
from toolkit.training.schedule import rate_factors

PLAIN = Recipe(lr=0.05)
NORM = re.compile(r"\.1\.(weight|bias|running_mean|running_var|num_batches_tracked)$")


def trained(folder, recipe: Recipe, *, cut: int = 1, epochs: int = 2, dropout: float = 0.2, callbacks=(), **data):
    torch.manual_seed(3)
    module = TransferModule(tiny_backbone(dropout=dropout), 3, cut=cut, recipe=recipe)
    settings = {"max_epochs": epochs, "callbacks": list(callbacks)}
    bare_trainer(folder, **settings).fit(module, folder_data(folder / "photos", **data))
    return module


# Mixup and CutMix


def numbered(*shape: int) -> torch.Tensor:
    """Image k is k everywhere: what is seen says whose it is."""
    return torch.arange(shape[0], dtype=torch.float32).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_mixup_is_a_weighted_mean_with_the_partner(n):
    torch.manual_seed(n)
    images = numbered(n, 3, 4, 5)
    mixed = blend(images, "NCHW", mixup=0.4, cutmix=0.0)
    assert 0 <= mixed.kept <= 1 and sorted(mixed.partners.tolist()) == list(range(n))
    wanted = mixed.kept * images + (1 - mixed.kept) * images[mixed.partners]
    torch.testing.assert_close(mixed.inputs, wanted)
    assert torch.equal(images, numbered(n, 3, 4, 5)), "what is stored stays as it is"


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (6, 2, 7, 5)), ("NHWC", (6, 7, 5, 2))])
def test_cutmix_pastes_one_rectangle_and_counts_it(layout, shape):
    kept = []
    for seed in range(60):
        torch.manual_seed(seed)
        activations = Activations(numbered(*shape), (numbered(6, 3),))
        mixed = blend(activations, layout, mixup=0.0, cutmix=1.0)
        maps = mixed.inputs.at_cut if layout == "NCHW" else mixed.inputs.at_cut.permute(0, 3, 1, 2)
        own = maps == torch.arange(6).reshape(-1, 1, 1, 1)
        for image, partner in enumerate(mixed.partners.tolist()):
            assert (maps[image][~own[image]] == partner).all()
            if partner != image:
                assert float(own[image].float().mean()) == pytest.approx(mixed.kept, abs=1e-6)
                inside = (~own[image, 0]).nonzero()
                if len(inside):
                    (top, left), (bottom, right) = inside.min(0).values.tolist(), inside.max(0).values.tolist()
                    assert (bottom - top + 1) * (right - left + 1) == len(inside), "one rectangle, the same in channels"
        pooled = mixed.kept * torch.arange(6.0) + (1 - mixed.kept) * mixed.partners
        torch.testing.assert_close(mixed.inputs.pooled[0], pooled[:, None].expand(6, 3))
        kept.append(mixed.kept)
    assert min(kept) < 0.3 and max(kept) > 0.9


def test_with_both_each_batch_has_one_of_them():
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        mixed = blend(numbered(5, 1, 8, 8), "NCHW", mixup=1.0, cutmix=1.0)
        whole = bool((mixed.inputs == mixed.inputs.round()).all())
        seen.add("cutmix" if whole else "mixup")
    assert seen == {"cutmix", "mixup"}


def test_what_has_no_map_cannot_be_cut_and_half_precision_is_blended_in_single():
    tokens = Activations(torch.ones(4, 9, 8), ())
    with pytest.raises(SettingError, match="no map; take mixup"):
        blend(tokens, "NLC", mixup=0.0, cutmix=1.0)
    with pytest.raises(SettingError, match="no map; take mixup"):
        blend(Activations(None, (torch.ones(4, 8),)), "NCHW", mixup=0.0, cutmix=1.0)
    assert blend(tokens, "NLC", mixup=1.0, cutmix=0.0).inputs.at_cut.shape == (4, 9, 8)
    alone = blend(Activations(None, (numbered(4, 8).bfloat16(),)), "NCHW", mixup=1.0, cutmix=0.0)
    assert alone.inputs.at_cut is None and alone.inputs.pooled[0].dtype == torch.float32


def test_the_loss_of_a_blend_is_the_blend_of_the_losses(monkeypatch):
    module = TransferModule(tiny_backbone(dropout=0.0), 3, cut=2, recipe=replace(PLAIN, mixup=1.0, label_smoothing=0.1))
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    nn.init.normal_(module.network.head.linear.weight)
    pixels, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(8)
    loss = module.training_step((pixels, labels), 0)["loss"]
    torch.manual_seed(8)
    mixed = blend(module.network.before_tail(pixels), "NCHW", mixup=1.0, cutmix=0.0)
    target = mixed.kept * nn.functional.one_hot(labels) + (1 - mixed.kept) * nn.functional.one_hot(
        labels[mixed.partners]
    )
    target = 0.9 * target + 0.1 / 3
    wanted = -(target * module(mixed.inputs).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, wanted)


# The moving average


def test_the_average_follows_the_formula_and_is_what_everybody_sees():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage([weight], 0.9)
    latest, wanted = 1.0, 1.0
    for step in range(1, 200):
        average.learn()
        assert float(weight.detach()) == pytest.approx(latest, rel=1e-6)
        latest = latest * 0.97 + step % 3
        weight.data.fill_(latest)
        average.rest()
        wanted += (1 - min(0.9, (1 + step) / (10 + step))) * (latest - wanted)
        assert float(weight.detach()) == pytest.approx(wanted, rel=1e-5)
    other = WeightAverage([nn.Parameter(weight.detach().clone())], 0.9)
    other.load_state_dict(average.state_dict())
    assert other.steps == average.steps
    other.learn()
    assert float(other._parameters[0].detach()) == pytest.approx(latest, rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_with_an_average_learns_as_without_and_ends_in_the_average(tmp_path, accumulate):
    class Records(pl.Callback):
        def __init__(self):
            self.latest, self.shown = [], []

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            self.latest.append(pl_module.network.head.linear.weight.detach().clone())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.shown.append(pl_module.network.head.linear.weight.detach().clone())

    ends = {}
    for decay in (0.0, 0.8):
        records = Records()
        torch.manual_seed(3)
        module = TransferModule(tiny_backbone(), 3, cut=1, recipe=replace(PLAIN, ema=decay))
        trainer = bare_trainer(tmp_path, callbacks=[records], accumulate_grad_batches=accumulate)
        trainer.fit(module, folder_data(tmp_path / "photos"))
        ends[decay] = (records, copied(module.network.state_dict()))
    if accumulate == 1:  # zero_grad comes before each step: those are the weights that learn
        for one, other in zip(ends[0.0][0].latest, ends[0.8][0].latest, strict=True):
            assert torch.equal(one, other)
        average = ends[0.0][0].latest[0].clone()
        for step, latest in enumerate(ends[0.0][0].shown, start=1):
            average.lerp_(latest, 1 - min(0.8, (1 + step) / (10 + step)))
            torch.testing.assert_close(average, ends[0.8][0].shown[step - 1])
    assert changed(ends[0.0][1], ends[0.8][1])
    assert torch.equal(ends[0.8][1]["head.linear.weight"], ends[0.8][0].shown[-1])


# The pull to the start


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_towards_the_start_holds_weights_there(tmp_path, optimizer):
    start = copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict())
    distance = {}
    for decay in (0.0, 200.0, 2000.0):
        recipe = Recipe(lr=0.02, optimizer=optimizer, weight_decay=decay, decay_towards="start")
        end = copied(trained(tmp_path, recipe).network.state_dict())
        distance[decay] = sum(float((end[key] - start[key]).norm()) for key in end if end[key].ndim > 1)
    assert distance[0.0] > 1.05 * distance[200.0] > 1.1 * distance[2000.0] > 0


def test_a_pull_of_one_leaves_weights_where_they_were_and_moves_norms(tmp_path):
    """A constant rate of 1/decay: after each step the weights are put back whole; norms and biases are not decayed."""
    recipe = Recipe(lr=0.01, weight_decay=1e9, decay_towards="start", optimizer="sgd")
    module = trained(tmp_path, recipe, cut=1)
    start = copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict())
    moved = changed(copied(module.network.state_dict()), start)
    assert moved and all(NORM.search(name) or name.endswith("bias") for name in moved)


def test_a_pull_of_nothing_changes_nothing(tmp_path):
    ends = [
        copied(trained(tmp_path, replace(PLAIN, weight_decay=0.0, decay_towards=where)).network.state_dict())
        for where in ("zero", "start")
    ]
    assert_equal(*ends)


# Depth, norms, and the order in which stages begin


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/efficientnet_lite0", "timm/test_vit", "convnext_tiny"])
def test_blocks_are_skipped_in_training_alone(name):
    try:
        backbone = family(name)
    except KeyError:
        backbone = build_backbone(name, pretrained=False, image_size_px=32)
    if name == "mobilenet_v3_small":  # its blocks have no place for it
        with pytest.raises(SettingError, match="drop_path: no stage"):
            TransferModule(backbone, 3, cut=0, recipe=replace(PLAIN, drop_path=0.5))
        return
    size = backbone.preprocessing.crop_px
    pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
    module = TransferModule(backbone, 3, cut=0).eval()
    before = module.network.features(pixels)
    n = set_drop_path(backbone.stages, 0.5)
    assert n > 1
    assert torch.equal(module.eval().network.features(pixels), before), "not in eval mode"
    module.train()
    torch.manual_seed(0)
    first, second = module.network.features(pixels), module.network.features(pixels)
    assert not torch.equal(first, second)
    shares = [m.p for stage in backbone.stages for m in stage.modules() if type(m).__name__ == "StochasticDepth"]
    assert shares == pytest.approx([0.5 * k / n for k in range(1, n + 1)])


def test_norms_are_frozen_fixed_or_move(tmp_path):
    start = copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict())
    moved = {}
    for mode in ("frozen", "fixed", "moving"):
        module = trained(tmp_path, replace(PLAIN, batchnorm=mode))
        moved[mode] = {name for name in changed(copied(module.network.state_dict()), start) if NORM.search(name)}
        assert_equal(prefix_state(module), prefix_state(TransferModule(tiny_backbone(), 3, cut=1)))
    assert moved["frozen"] == set()
    assert moved["fixed"] and not any("running" in name for name in moved["fixed"])
    assert any("running" in name for name in moved["moving"]) and moved["fixed"] < moved["moving"]


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.1), (19, 0.1), (39, 0.05), (1000, 0.01)])
def test_the_momentum_of_moving_norms_follows_an_epoch(steps, momentum):
    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=replace(PLAIN, batchnorm="moving"))
    module.network.set_momentum(steps)
    found = [m.momentum for stage in module.network.stages for m in stage.modules() if isinstance(m, BATCH_NORMS)]
    assert found == pytest.approx([0.1, 0.1, momentum, momentum])


def test_stages_begin_one_after_the_other_from_the_top(tmp_path):
    class Moves(pl.Callback):
        def __init__(self):
            self.begun: dict[str, int] = {}
            self.start = copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict())

        def on_train_epoch_end(self, trainer, pl_module):
            for name in changed(copied(pl_module.network.state_dict()), self.start):
                part = ".".join(name.split(".")[:2]) if name.startswith("stages") else "head"
                self.begun.setdefault(part, trainer.current_epoch)

    moves = Moves()
    trained(tmp_path, replace(PLAIN, unfreeze=2), cut=1, epochs=7, callbacks=[moves])
    assert moves.begun == {"head": 0, "stages.3": 2, "stages.2": 4, "stages.1": 6}


def test_all_groups_follow_one_curve_once_they_have_begun():
    factors = rate_factors(replace(PLAIN, unfreeze=1, warmup=0.2), [2, 1, 0], 30, 10.0)
    for step in range(30):
        low, middle, top = (factor(step) for factor in factors)
        assert top > 0
        assert middle == (top if step >= 10 else 0) and low == (top if step >= 20 else 0)


def test_unfreezing_wants_to_know_the_epochs(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(3, 32, 32, dtype=torch.uint8), torch.tensor(0)

    module = TransferModule(tiny_backbone(), 3, cut=1, recipe=replace(PLAIN, unfreeze=1))
    with pytest.raises(SettingError, match="unfreeze counts epochs: the data must have a length"):
        bare_trainer(tmp_path, max_epochs=-1, max_steps=3).fit(module, DataLoader(Endless(), batch_size=2))


# How far a step moves


def test_update_ratios_are_those_of_the_steps(tmp_path):
    class Norms(pl.Callback):
        def __init__(self):
            self.ratios = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = pl_module.network.stages[3][0][0].weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after = pl_module.network.stages[3][0][0].weight.detach()
            self.ratios.append(float((after - self.before).norm() / self.before.norm()))

    norms = Norms()
    module = trained(tmp_path, PLAIN, epochs=1, callbacks=[norms])  # six steps; every one is a sample
    found = module.updates.take()
    assert set(found) == {"update_stage_1", "update_stage_2", "update_stage_3", "update_head"}
    assert found["update_stage_3"] == pytest.approx(sorted(norms.ratios)[2] / 2 + sorted(norms.ratios)[3] / 2)
    assert module.updates.take() == {}


def test_data_without_a_length_train_as_well(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=PLAIN)
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    trainer = bare_trainer(tmp_path, max_epochs=-1, max_steps=7, limit_val_batches=0)
    trainer.fit(module, loader)
    assert trainer.global_step == 7 and set(module.updates.take()) == {
        "update_stage_2",
        "update_stage_3",
        "update_head",
    }
