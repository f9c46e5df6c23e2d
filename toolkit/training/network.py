"""TransferNetwork: a backbone's stages and a new head, with freezing as declared state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.normalise import Normalise
from toolkit.backbones.taps import check_taps
from toolkit.errors import SettingError
from toolkit.plan import FreezeSpec

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TransferNetwork(nn.Module):
    """Pixels to class scores: frozen prefix, trainable tail, head.

    This is the one place that freezes. Parameters of the prefix do not require gradients, and its modules
    stay in eval mode whatever `.train()` a parent calls, so that BatchNorm statistics never move. BatchNorm
    of a pretrained tail keeps its statistics too unless `update_batchnorm` is set: a few hundred images in
    small batches estimate them worse than ImageNet did, while its scale and shift train.

    The backbone's stages are taken over, not copied. taps: the stages whose pooled outputs the head sees side by
    side (the last one by default). head: (N, D) to (N, C), D being the sum of the taps' widths.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        spec: FreezeSpec,
        *,
        taps: Sequence[int] | None = None,
        update_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.taps = check_taps(taps, len(backbone))
        if len(spec.rules) != len(backbone):
            raise SettingError(f"freezing: {len(backbone)} rules expected, one a stage; got {len(spec.rules)}")
        if self.taps[-1] + 1 < len(backbone) and spec.cut < len(backbone):
            raise SettingError(
                f"taps: stage {len(backbone) - 1} trains, but the last tap is stage {self.taps[-1]} and the head would "
                "never see it; add the last stage to the taps"
            )
        self.stages = nn.ModuleList(backbone.stages)
        self.head = head
        self.spec = spec
        self.update_batchnorm = update_batchnorm
        self.normalise = Normalise(backbone.preprocessing)
        self.pool = backbone.pool
        for stage, rule in zip(self.stages, spec.rules, strict=True):
            stage.requires_grad_(rule.trainable)
        self.head.requires_grad_(True)
        # Kernels are chosen by memory format: a resumed run, which extracts nothing, must find the same one.
        self.to(memory_format=torch.channels_last)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Set training mode for the tail and the head; the prefix stays in eval mode."""
        super().train(mode)
        for stage, rule in zip(self.stages, self.spec.rules, strict=True):
            if not rule.trainable:
                stage.eval()
        if not self.update_batchnorm:
            for module in self.stages.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """Return float (N, D), the taps' pooled outputs, for uint8 or normalised float (N, 3, H, W)."""
        pooled: dict[int, Tensor] = {}
        activation = self.normalise(pixels)
        for index, (stage, rule) in enumerate(zip(self.stages, self.spec.rules, strict=True)):
            if index > self.taps[-1]:
                break
            with torch.set_grad_enabled(torch.is_grad_enabled() and rule.trainable):
                activation = stage(activation)
                if index in self.taps:
                    pooled[index] = self.pool(activation)
        return torch.cat([pooled[tap].float() for tap in self.taps], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return class scores, float (N, C), for uint8 or normalised float (N, 3, H, W)."""
        scores: Tensor = self.head(self.features(pixels))
        return scores

    @contextmanager
    def fixed_statistics(self) -> Iterator[None]:
        """Keep every BatchNorm on its running statistics for a while: one sample has no variance to normalise by."""
        switched = [m for m in self.modules() if isinstance(m, BATCH_NORMS) and m.training]
        for module in switched:
            module.eval()
        try:
            yield
        finally:
            for module in switched:
                module.train()
