"""Frozen means frozen: not a bit of the prefix moves, whatever is called and however it is trained."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from tests.training.tiny import (
    assert_equal,
    bare_trainer,
    changed,
    copied,
    folder_data,
    prefix_state,
    tiny_backbone,
)
from toolkit.errors import SettingError
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec, Recipe, StageRule
from toolkit.training.groups import parameter_groups
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}],
    ids=["plain", "accumulated", "bf16", "clipped"],
)
def test_prefix_is_bit_identical_after_training(tmp_path, settings):
    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.1))
    before, start = prefix_state(module), copied(module.network.state_dict())
    bare_trainer(tmp_path, **settings).fit(module, folder_data(tmp_path / "photos"))
    assert len(before) == 2 * 6  # conv, and BatchNorm's weight, bias, mean, variance and count
    assert_equal(prefix_state(module), before)
    moved = changed(copied(module.network.state_dict()), start)
    expected = {f"stages.{i}" for i in (2, 3)}
    trained = {name for name, p in module.network.named_parameters() if not name.startswith(("stages.0", "stages.1"))}
    assert moved == trained, "the tail's statistics stay as pretrained, its weights and the head learn"
    assert expected <= {".".join(name.split(".")[:2]) for name in moved}


def test_prefix_is_bit_identical_after_a_resume(tmp_path):
    data = folder_data(tmp_path / "photos")
    first = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.1))
    before = prefix_state(first)
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(first, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.1))
    bare_trainer(tmp_path).fit(second, folder_data(tmp_path / "photos"), ckpt_path=tmp_path / "one.ckpt")
    assert_equal(prefix_state(second), before)
    assert not any(p.requires_grad for p in second.network.stages[:2].parameters())
    assert changed(copied(second.network.state_dict()), copied(first.network.state_dict()))


class SwitchesModes(pl.Callback):
    """What careless code does: train mode for the module, and for each part that it can reach."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        nn.ModuleList([pl_module]).train()
        pl_module.eval()
        pl_module.train()
        self.seen.append(any(m.training for stage in pl_module.network.stages[:2] for m in stage.modules()))


def test_train_calls_of_a_parent_never_reach_the_prefix(tmp_path):
    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.1))
    before, switches = prefix_state(module), SwitchesModes()
    bare_trainer(tmp_path, callbacks=[switches]).fit(module, folder_data(tmp_path / "photos"))
    assert_equal(prefix_state(module), before)
    assert switches.seen and not any(switches.seen)
    assert module.network.train().stages[2][3].training, "the dropout of the tail does train"
    assert not module.network.stages[2][1].training, "its BatchNorm keeps the pretrained statistics"


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_statistics_of_the_tail_move_only_if_asked(tmp_path, cut):
    for update in (False, True):
        module = TransferModule(
            tiny_backbone(), 3, cut=cut, recipe=Recipe(lr=0.1, batchnorm="moving" if update else "fixed")
        )
        start = copied(dict(module.network.named_buffers()))
        bare_trainer(tmp_path, max_epochs=1).fit(module, folder_data(tmp_path / "photos"))
        moved = changed(copied(dict(module.network.named_buffers())), start)
        names = ("running_mean", "running_var", "num_batches_tracked")
        expected = {f"{_norm(stage)}.{name}" for stage in range(cut, 4) for name in names}
        assert moved == (expected if update else set())


def _norm(stage: int) -> str:
    return "stages.3.0.1" if stage == 3 else f"stages.{stage}.1"  # the mean over positions is wrapped round the last


def test_training_is_in_train_mode_though_the_network_begins_in_eval(tmp_path):
    module = TransferModule(tiny_backbone(), 3, cut=2)
    assert not module.network.training, "a network that was just built predicts as it stands"
    modes: list[tuple[bool, bool]] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append((pl_module.network.stages[2][3].training, pl_module.network.stages[1][3].training))

    bare_trainer(tmp_path, callbacks=[Look()]).fit(module, folder_data(tmp_path / "photos"))
    assert set(modes) == {(True, False)}


def test_no_gradient_ever_reaches_the_prefix():
    module = TransferModule(tiny_backbone(), 3, cut=2)
    module.unfreeze()  # Lightning's: requires_grad for everything
    nn.init.normal_(module.network.head.linear.weight)
    module.train()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    module.training_step((pixels, torch.tensor([0, 1, 2, 0])), 0)["loss"].backward()
    assert all(p.grad is None for p in module.network.stages[:2].parameters())
    assert all(p.grad is not None for p in module.network.stages[2:].parameters())


def test_groups_never_hold_the_prefix_and_hold_the_rest_once():
    module = TransferModule(tiny_backbone(), 3, cut=2)
    prefix = {id(p) for p in module.network.stages[:2].parameters()}
    held = [
        id(p) for group in parameter_groups(module.network, Recipe(lr=1.0, weight_decay=0.1)) for p in group["params"]
    ]
    assert not prefix & set(held)
    assert len(held) == len(set(held)) == len(list(module.network.parameters())) - len(prefix)


def test_everything_frozen_trains_the_head_alone(tmp_path):
    module = TransferModule(tiny_backbone(), 3, cut=4, recipe=Recipe(lr=0.1))
    start = copied(module.network.state_dict())
    bare_trainer(tmp_path).fit(module, folder_data(tmp_path / "photos"))
    moved = changed(copied(module.network.state_dict()), start)
    assert moved == {"head.linear.weight", "head.linear.bias"}


def test_freezing_is_declared_in_order():
    with pytest.raises(SettingError, match="frozen stages come first"):
        FreezeSpec((StageRule(True, 0.1), StageRule(False, 0.0)))
    with pytest.raises(SettingError, match="multipliers"):
        FreezeSpec((StageRule(True, -0.1),))
    with pytest.raises(SettingError, match="multipliers"):
        FreezeSpec((StageRule(True, 0.1),), head_multiplier=0.0)
    for cut in (-1, 5):
        with pytest.raises(SettingError, match="0 to 4 expected"):
            FreezeSpec.at_cut(4, cut)
    spec = FreezeSpec.at_cut(4, 1)
    assert spec.cut == 1 and [rule.multiplier for rule in spec.rules] == [0.0, 0.01, 0.01, 0.1]
    assert FreezeSpec.from_scratch(3).rules == (StageRule(True, 1.0),) * 3
    assert FreezeSpec.at_cut(3, 3).cut == 3


def test_a_spec_must_fit_its_backbone():
    with pytest.raises(SettingError, match="4 rules expected, one a stage; got 3"):
        TransferModule(tiny_backbone(), 3, spec=FreezeSpec.at_cut(3, 1))
    with pytest.raises(SettingError, match="either cut or spec"):
        TransferModule(tiny_backbone(), 3, cut=1, spec=FreezeSpec.at_cut(4, 1))
    with pytest.raises(SettingError, match=r"unknown optimizer 'adanw'.*adamw"):
        TransferModule(tiny_backbone(), 3, recipe=Recipe(optimizer="adanw"))


def test_a_tail_that_no_tap_sees_is_refused():
    backbone = tiny_backbone()
    with pytest.raises(SettingError, match="stage 3 trains, but the last tap is stage 2"):
        TransferNetwork(backbone, LinearHead((16,), 3), FreezeSpec.at_cut(4, 2), taps=(2,))
    TransferNetwork(backbone, LinearHead((16,), 3), FreezeSpec.at_cut(4, 4), taps=(2,))  # nothing trains there


DDP = """
    import sys
    from pathlib import Path

    import torch
    from lightning.pytorch import Callback

    from tests.training.tiny import bare_trainer, copied, folder_data, tiny_backbone
    from toolkit.plan import Recipe
    from toolkit.training.module import TransferModule


    class Keep(Callback):
        def on_fit_end(self, trainer, pl_module):
            state = copied(pl_module.network.state_dict())
            data = trainer.datamodule
            torch.save({"state": state, "rows": seen}, folder / f"rank{trainer.global_rank}.pt")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((trainer.current_epoch, trainer.datamodule.last_batch.rows.tolist()))


    seen = []
    folder = Path(sys.argv[1])
    data = folder_data(folder / "photos", batch_size=8, val=0.1)
    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.1, batchnorm="moving"))
    settings = {"accumulate_grad_batches": int(sys.argv[2])}
    trainer = bare_trainer(folder, strategy="ddp", devices=2, callbacks=[Keep()], **settings)
    trainer.fit(module, data)
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_keep_the_prefix_and_agree_on_the_tail(tmp_path, accumulate):
    data = folder_data(tmp_path / "photos", {"cat": 39, "dog": 38, "owl": 38}, val=0.1)
    rows = data.manifest.rows(0)
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(accumulate)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    start = TransferModule(tiny_backbone(), 3, cut=2).network.state_dict()
    assert_equal(zero["state"], one["state"])
    moved = changed(zero["state"], copied(start))
    assert moved and not any(name.startswith(("stages.0", "stages.1")) for name in moved)
    assert "head.linear.weight" in moved and "stages.2.1.running_mean" in moved
    assert len(rows) == 103
    for epoch in (0, 1):
        shares = [[row for e, batch in rank["rows"] if e == epoch for row in batch] for rank in (zero, one)]
        assert len(shares[0]) == len(shares[1]) == 52
        assert set(shares[0]) | set(shares[1]) == set(rows.tolist())
