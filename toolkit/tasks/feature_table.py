"""FeatureTable: features by rows, in memory or written block by block to an .npz or .parquet file."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from toolkit.errors import ArtifactError, SettingError
from toolkit.storage import publishing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toolkit.data.manifest import Manifest
    from toolkit.features.stored import PooledRows

BLOCK_BYTES = 16 << 20  # of features that are in memory at a time
BLOCK_ROWS = 65_536  # at most; of the other columns


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of the images that could be read, in path order: V views of each, the clean one first, so N·V rows.

    manifest: the images. views: V. shape: (N·V, D). quarantined: (path, reason) of files that could not be used.
    The columns are arrays of N·V rows; where a file was written, X is read from it when it is first asked for.
    """

    manifest: Manifest
    views: int
    shape: tuple[int, int]
    _values: NDArray[np.float32] | str  # or the file that holds them

    @cached_property
    def X(self) -> NDArray[np.float32]:
        """Features, float32 (N·V, D), the taps side by side; ArtifactError where the file is gone."""
        if not isinstance(self._values, str):
            return self._values
        try:
            return _read_values(self._values)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{self._values}: its features cannot be read ({error}); write it again") from error

    @cached_property
    def paths(self) -> NDArray[np.str_]:
        """Paths of the images, str (N·V,)."""
        return self.column("paths")

    @cached_property
    def y(self) -> NDArray[np.int64]:
        """Labels as positions in `classes`, int64 (N·V,); −1 where there is none."""
        return self.column("y")

    @cached_property
    def split(self) -> NDArray[np.str_]:
        """Splits, str (N·V,): "train", "val", "test", or "" where the data set does not say."""
        return self.column("split")

    @cached_property
    def view(self) -> NDArray[np.int64]:
        """View numbers, int64 (N·V,); 0 is the clean view."""
        return self.column("view")

    @property
    def classes(self) -> NDArray[np.str_]:
        """Names of the classes, str (C,), sorted."""
        import numpy as np

        return np.array(self.manifest.classes, dtype=np.str_)

    @property
    def quarantined(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of image files that could not be used."""
        return tuple((item.path, item.reason) for item in self.manifest.quarantined)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start` to `stop` of the column `paths`, `y`, `split` or `view`."""
        import numpy as np

        from toolkit.data.manifest import SPLIT_NAMES

        image, view = images_and_views(start, self.shape[0] if stop is None else stop, self.views)
        if name == "view":
            return view
        if name == "y":
            return self.manifest.labels[image]
        if name == "split":
            return np.array([*SPLIT_NAMES, ""])[self.manifest.splits[image]]
        return np.array([self.manifest.paths[i] for i in image], dtype=self._path_type)

    @cached_property
    def _path_type(self) -> str:
        return f"U{max(map(len, self.manifest.paths))}"

    def __str__(self) -> str:
        several = f" × {self.views} views" if self.views > 1 else ""
        return (
            f"{len(self.manifest)} images{several} × {self.shape[1]} features, {len(self.manifest.classes)} classes; "
            f"{len(self.manifest.quarantined)} files quarantined"
        )


def in_memory(rows: PooledRows, positions: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Return the rows at `positions` (all by default), float32 (K, D), read block by block: no second copy is made."""
    import numpy as np

    positions = np.arange(len(rows)) if positions is None else positions
    values = np.empty((len(positions), rows.shape[1]), np.float32)
    for start, stop in _blocks(values.shape):
        values[start:stop] = rows[positions[start:stop]]
    return values


def _blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of rows that are small enough to be in memory."""
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * shape[1])))
    for start in range(0, shape[0], size):
        yield start, min(start + size, shape[0])


def images_and_views(start: int, stop: int, views: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the image and the view number of rows, int64 (K,) each."""
    import numpy as np

    return np.divmod(np.arange(start, stop), views)


def checked_path(out: str, *, overwrite: bool = False) -> str:
    """Return the path of the file to write; refuses what cannot be written, before the work and without a trace.

    A file that is there already is refused unless `overwrite` is set.
    """
    path = Path(os.path.expanduser(out))
    if path.suffix not in (".npz", ".parquet"):
        raise SettingError(f"out: a file name that ends in .npz or .parquet expected, got {str(out)!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise SettingError(
                'out: a .parquet file needs pyarrow; run: pip install ".[parquet]", or choose a name that ends in .npz'
            ) from None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell: the disk may be read-only
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error
    if os.path.lexists(path) and not overwrite:
        raise ArtifactError(f"{path} is there already; choose another --out, or replace it by --overwrite")
    return str(path)


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> ArtifactError:
    reason = error.strerror or " ".join(str(error).split())
    return ArtifactError(f"{path}: cannot be written ({reason}); choose another --out")


def write_table(out: str, table: FeatureTable, rows: PooledRows) -> None:
    """Publish a table whose X is `rows` as the file `out`; ArtifactError where it cannot be written."""
    try:
        with publishing(out) as temporary, open(temporary, "wb") as file:
            (_write_parquet if out.endswith(".parquet") else _write_npz)(file, table, rows)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _write_npz(file: IO[bytes], table: FeatureTable, rows: PooledRows) -> None:
    """Write what `np.savez` would, without having X in memory."""
    import zipfile

    import numpy as np

    names = ["paths", "X", "y", "classes", "split", *(["view"] if table.views > 1 else [])]
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if name == "classes":
                    np.lib.format.write_array(member, table.classes, allow_pickle=False)
                    continue
                shape = table.shape if name == "X" else table.shape[:1]
                dtype = rows.dtype if name == "X" else table.column(name, 0, 1).dtype
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for start, stop in _blocks(table.shape):
                    member.write((rows[start:stop] if name == "X" else table.column(name, start, stop)).tobytes())


def _write_parquet(file: IO[bytes], table: FeatureTable, rows: PooledRows) -> None:
    """Write a row group a block; the names of the classes are in the schema's metadata, as JSON."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ["path", "split", "label"]
    kinds = {**dict.fromkeys(text, pa.string()), "y": pa.int64(), "view": pa.int64()}
    kinds["X"] = pa.list_(pa.float32(), table.shape[1])
    classes = json.dumps(table.manifest.classes, ensure_ascii=False)
    schema = pa.schema(kinds, metadata={"classes": classes})
    with pq.ParquetWriter(file, schema, use_dictionary=text, compression="zstd") as writer:
        for start, stop in _blocks(table.shape):
            y = table.column("y", start, stop)
            columns = {
                "path": table.column("paths", start, stop),
                "split": [name or None for name in table.column("split", start, stop).tolist()],
                "label": [table.manifest.classes[label] if label >= 0 else None for label in y],
                "y": y,
                "view": table.column("view", start, stop),
                "X": pa.FixedSizeListArray.from_arrays(rows[start:stop].ravel(), table.shape[1]),
            }
            arrays = [pa.array(columns[name], kind) for name, kind in kinds.items()]
            writer.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=stop - start)


def _read_values(file: str) -> NDArray[np.float32]:
    import numpy as np

    if file.endswith(".npz"):
        with np.load(file, allow_pickle=False) as columns:
            values: NDArray[np.float32] = columns["X"]
            return values
    import pyarrow.parquet as pq

    column = pq.read_table(file, columns=["X"])["X"].combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(len(column), -1)
