"""TransferNetwork: a backbone's stages and a new head, with freezing as declared state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.normalise import Normalise
from toolkit.backbones.taps import check_taps
from toolkit.errors import SettingError
from toolkit.features.prefix import Activations, FrozenPrefix
from toolkit.features.sample import sample_images
from toolkit.plan import FreezeSpec
from toolkit.training.folded import folded_norms

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TransferNetwork(nn.Module):
    """Pixels, or what a frozen prefix made of them, to class scores: frozen prefix, trainable tail, head.

    This is the one place that freezes. Parameters of the prefix do not require gradients, and its modules
    stay in eval mode whatever `.train()` a parent calls, so that BatchNorm statistics never move. BatchNorm
    of a tail keeps its statistics too where `batchnorm` is "fixed": a few hundred images in small batches estimate
    them worse than ImageNet did, while its scale and shift train; with "frozen" these stay as well, and with "moving"
    everything goes with the data.

    The prefix runs as a FrozenPrefix, in passes of one fixed size, so that training from stored Activations and
    training from pixels see the same numbers.

    The backbone's stages are taken over, not copied. taps: the stages whose pooled outputs the head sees side by
    side (the last one by default). head: (N, D) to (N, C), D being the sum of the taps' widths. prefix_dtype: number
    format of the prefix; None for that of the autocast around it, or float32.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        spec: FreezeSpec,
        *,
        taps: Sequence[int] | None = None,
        batchnorm: str = "fixed",
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
        self.backbone = backbone
        self.prefix_dtype: torch.dtype | None = None
        self._prefix: tuple[object, FrozenPrefix] | None = None
        self.renewals = 0  # how often somebody said that weights were written to in a way that leaves no trace
        self.spec = spec
        self.batchnorm = batchnorm
        self.normalise = Normalise(backbone.preprocessing)
        for stage, rule in zip(self.stages, spec.rules, strict=True):
            stage.requires_grad_(rule.trainable)
            for module in stage.modules():
                if batchnorm == "frozen" and isinstance(module, BATCH_NORMS):
                    module.requires_grad_(False)
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
        if self.batchnorm != "moving":
            for module in self.stages.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def prefix(self) -> FrozenPrefix:
        """Return the frozen stages as they run, made anew when their weights, their device or the precision changed."""
        frozen = self.stages[: self.spec.cut]
        tensors = [*frozen.parameters(), *frozen.buffers()]
        device = tensors[0].device if tensors else self.normalise.mean.device
        dtype = self.prefix_dtype or self.normalise.mean.dtype
        if self.prefix_dtype is None and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        state = (device, dtype, [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors])
        if self._prefix is None or self._prefix[0] != state:
            cut = self.spec.cut
            before = [tap for tap in self.taps if tap < cut]
            trains = cut if cut < len(self.stages) else None
            made = FrozenPrefix(self.backbone, cut=trains, taps=before, dtype=dtype, device=device)
            self._prefix = (state, made)
        return self._prefix[1]

    def renew_prefix(self) -> None:
        """Make the frozen stages anew at the next forward: what is written through `.data` leaves no trace."""
        self._prefix = None
        self.renewals += 1

    def features(self, inputs: Tensor | Activations) -> Tensor:
        """Return float (N, D), the taps' pooled outputs.

        inputs: uint8 or normalised float (N, 3, H, W), or the Activations of this network's prefix for them.
        """
        pooled: list[Tensor] = []
        if self.spec.cut == 0:
            assert isinstance(inputs, Tensor), "nothing is frozen: pixels are expected"
            activation: Tensor | None = self.normalise(inputs)
        else:
            frozen = inputs if isinstance(inputs, Activations) else self._frozen(inputs)
            activation, pooled = frozen.at_cut, list(frozen.pooled)
        for index in range(self.spec.cut, self.taps[-1] + 1):
            if index == self.spec.cut and index:  # stored in half precision, it trains in the tail's own
                assert activation is not None
                activation = activation.to(self.normalise.mean.dtype)
                if activation.ndim == 4:  # kernels are chosen by memory format, which a store does not keep
                    activation = activation.contiguous(memory_format=torch.channels_last)
            activation = self.stages[index](activation)
            if index in self.taps:
                pooled.append(self.backbone.pool(activation))
        return torch.cat([part.float() for part in pooled], dim=1)

    def before_tail(self, inputs: Tensor | Activations) -> Tensor | Activations:
        """Return what the first trained stage gets: Activations, or where nothing is frozen normalised images."""
        if isinstance(inputs, Activations):
            return inputs
        return self._frozen(inputs) if self.spec.cut else self.normalise(inputs)

    def _frozen(self, pixels: Tensor) -> Activations:
        if torch._C._get_tracing_state() or torch.compiler.is_exporting():
            return self.by_stages(pixels)  # an exported program takes batches of any size
        return self.prefix()(pixels)

    def by_stages(self, pixels: Tensor) -> Activations:
        """Return what the frozen stages make of images as they are, without the faster copies that `prefix` makes.

        It is equal but for rounding, and sooner done with a few images, as the copies take a while to make.
        """
        pooled = []
        activation = self.normalise(pixels)
        for index in range(min(self.spec.cut, self.taps[-1] + 1)):
            activation = self.stages[index](activation)
            if index in self.taps:
                pooled.append(self.backbone.pool(activation).float())
        return Activations(activation, tuple(pooled))

    def forward(self, inputs: Tensor | Activations) -> Tensor:
        """Return class scores, float (N, C), for what `features` takes."""
        scores: Tensor = self.head(self.features(inputs))
        return scores

    def set_momentum(self, steps_an_epoch: float) -> None:
        """Let the running statistics of the trained stages follow about an epoch: 2 / (steps + 1), 0.01 to 0.1."""
        for stage in self.stages[self.spec.cut :]:
            for module in stage.modules():
                if isinstance(module, BATCH_NORMS) and module.momentum is not None:
                    module.momentum = min(0.1, max(0.01, 2 / (steps_an_epoch + 1)))

    def folded(self) -> AbstractContextManager[object]:
        """Compute norms with fixed statistics inside the convolutions before them, for a while: see folded_norms."""
        if self.batchnorm == "moving" or self.spec.cut == len(self.stages):
            return nullcontext()
        sample = self.normalise(sample_images(1, self.backbone.preprocessing.crop_px).to(self.normalise.mean.device))
        return folded_norms(self.stages, self.spec.cut, sample)

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
