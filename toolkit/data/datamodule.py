"""ImageFolderData: a data set's folder as a LightningDataModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.decode import DEFAULT_MAX_PIXELS
from toolkit.data.loading import Batch, Failure, ResumableLoader, ViewDataset, ViewSource
from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.samplers import SeededSampler, SteadySampler
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.data.views import AUGMENTATIONS, augmentation
from toolkit.errors import ArtifactError

OTHER_DATA = (
    "{}: the images are not those of the checkpoint (files were added, removed or moved since); put them back, or "
    "start a new run"
)


class Resumable(Protocol):
    """A loader that knows how far its epoch has got, and can go on from there."""

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


_Loader = TypeVar("_Loader", bound=Resumable)


class ManifestData(LightningDataModule):
    """A LightningDataModule of a split Manifest: what `toolkit.training.fit` trains on, and resumes in mid-epoch."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest
        self._training: Resumable | None = None
        self._position: dict[str, int] | None = None

    def rows_in_work(self) -> Tensor:
        """Return int64 (B,), the rows of the Manifest that the last batch was made of; none where nobody knows."""
        return torch.empty(0, dtype=torch.int64)

    def _resumed(self, loader: _Loader) -> _Loader:
        """Keep the training loader, whose position checkpoints hold, and send it to that of a loaded one."""
        self._training = loader
        if self._position is not None:
            loader.load_state_dict(self._position)
            self._position = None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch and what the data looked like."""
        position = None if self._training is None else self._training.state_dict()
        return {"position": position, "fingerprint": self.manifest.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`'s position; ArtifactError where the data are not those of the checkpoint.

        A Trainer that validates, tests or predicts from a checkpoint restores this too: then there is nothing to go on
        with, and the data may be others.
        """
        if self.trainer is not None and self.trainer.state.fn not in (None, TrainerFn.FITTING):
            return
        if state_dict["fingerprint"] != self.manifest.fingerprint():
            raise ArtifactError(OTHER_DATA.format(self.manifest.root))
        self._position = state_dict["position"]


class ImageFolderData(ManifestData):
    """Batches of (pixels uint8 (B, 3, S, S), labels int64 (B,)) from a folder, a CSV or a Manifest.

    The order and the views of epoch e are pure functions of (seed, e): a run resumed in mid-epoch goes on with the
    batch that comes next, whatever `workers` is. Files that fail while training are left out of their batch and
    collected in `failures`. `last_batch` holds the rows that the step in progress works on. Under a Trainer with
    `overfit_batches`, every epoch has the first batches of epoch 0 (in other views, unless augment is "none").

    source: what `toolkit.data.scan` takes, or a Manifest. preprocessing: the backbone's own. augment: a name of
    `AUGMENTATIONS`. views: distinct views per image; epoch e shows view e mod views (0 is the clean one).
    stored: where the views are read instead of from the files; they must be those of the same recipe and seed.
    by_source: bool (N,), the rows whose views are cut from a reduced copy of the image, as a run does that stores those
    copies.
    """

    def __init__(
        self,
        source: str | Path | Manifest,
        preprocessing: Preprocessing,
        *,
        batch_size: int = 32,
        augment: str = "standard",
        views: int = 100,
        val: float = 0.2,
        seed: int = 0,
        workers: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        stored: ViewSource | None = None,
        by_source: NDArray[np.bool_] | None = None,
    ) -> None:
        manifest = source if isinstance(source, Manifest) else scan(source, max_pixels=max_pixels)
        super().__init__(assign_splits(manifest, val=val, seed=seed))
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.augment = augmentation(augment)
        self.views = views
        self.seed = seed
        self.workers = workers
        self.max_pixels = max_pixels
        self.stored = stored
        self.by_source = by_source
        self.failures: dict[int, str] = {}
        self.last_batch: Batch | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self.manifest.classes

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of the training split: shuffled, augmented, resumable."""
        return self._resumed(self._loader(TRAIN, views=self.views, shuffle=True))

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader of the validation split: clean views in path order."""
        return self._loader(VAL, views=1, shuffle=False)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of the test split: clean views in path order."""
        return self._loader(TEST, views=1, shuffle=False)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Any, Tensor]:
        """Record which files failed and hand (inputs, labels) to the module."""
        self._record(batch.failures)
        self.last_batch = batch
        return batch.inputs, batch.labels

    def rows_in_work(self) -> Tensor:
        """Return int64 (B,), the rows of the Manifest that the last batch was made of."""
        return super().rows_in_work() if self.last_batch is None else self.last_batch.rows

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, what the data looked like and the files that failed."""
        return {**super().state_dict(), "failures": self.failures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`'s position; ArtifactError where the data are not those of the checkpoint."""
        super().load_state_dict(state_dict)
        self.failures = dict(state_dict["failures"])

    def _record(self, failures: tuple[Failure, ...]) -> None:
        self.failures.update(failures)

    def _loader(self, split: int, *, views: int, shuffle: bool) -> ResumableLoader:
        recipe = self.augment if split == TRAIN else AUGMENTATIONS["none"]
        dataset: ViewSource | None = self.stored
        if dataset is None:
            dataset = ViewDataset(
                self.manifest,
                self.preprocessing,
                recipe,
                seed=self.seed,
                max_pixels=self.max_pixels,
                by_source=self.by_source,
            )
        ranks = {} if self.trainer is None else {"replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        overfits = getattr(self.trainer, "overfit_batches", 0) > 0
        kind = SteadySampler if overfits or not shuffle else SeededSampler
        sampler = kind(self.manifest.rows(split), views=views, seed=self.seed, shuffle=shuffle, **ranks)
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = self.workers if dataset.costly else 0
        return ResumableLoader(dataset, sampler, batch_size=self.batch_size, workers=workers, pin=pin)
