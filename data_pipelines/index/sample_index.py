"""An opened index."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.decoding import SampleDecoder
from data_pipelines.errors import UserError, a_few
from data_pipelines.index.format import (
    INDEX_FOLDER,
    KEYS_FILE,
    META_FILE,
    REMAKE,
    SAMPLES_FILE,
    IndexMeta,
    fingerprint_of,
    sample_dtype,
)
from data_pipelines.index.limits import MOST_TABLE_HEADER_BYTES
from data_pipelines.index.locate import check_file, find_split, other_shards
from data_pipelines.index.plausible import implausible
from data_pipelines.sources import is_command, is_remote
from data_pipelines.sources.file_names import checked_file_name


class SampleIndex:
    """The samples of one split: how many, of which classes, and where each lies.

    Sample ids are 0 … num_samples - 1, in the order of the shards. Pickling keeps the folder and
    the metadata only; the table is mapped again where it is unpickled.

    Attributes:
        directory: The folder of the split.
        meta: What the index says about the split.
        decoder: How its samples are decoded.
        samples: One record a sample, see `format.sample_dtype`; mapped read-only from the file.
    """

    def __init__(self, directory: Path, meta: IndexMeta) -> None:
        """Maps the table of samples; use `open`, which checks the shards too.

        Raises:
            UserError: The table or the keys are missing or do not fit the metadata.
        """
        self.directory = directory
        self.meta = meta
        try:
            self.decoder = SampleDecoder.for_columns(meta.columns)
        except UserError as error:
            raise UserError(f"{directory / INDEX_FOLDER / META_FILE}: {error}") from error
        self.samples = _map_samples(directory / INDEX_FOLDER / SAMPLES_FILE, meta)

    @classmethod
    def open(cls, location: str | Path) -> "SampleIndex":
        """Opens the index of a split and checks that it fits the shards beside it.

        The index must be as it was made, every shard must be there with the size it was indexed
        with, and no others beside the index. Their content, and whether remote ones are there, is
        checked when they are read.

        Args:
            location: The folder of the split, which holds the shards and `index/`; or the shards,
                as `DIR/train-{000000..000003}.tar` or with `*`, where others lie beside them.

        Raises:
            UserError: Something is missing, damaged, or not what was indexed; the message names it.
        """
        directory, names = find_split(location)
        meta = IndexMeta.read(directory / INDEX_FOLDER / META_FILE)
        if names is not None:
            _check_names(location, given=names, meta=meta)
        else:
            _check_no_others(directory, meta)
        for name in (META_FILE, SAMPLES_FILE, KEYS_FILE):
            check_file(directory / INDEX_FOLDER / name, folder=directory)
        _check_shards(directory, meta)
        index = cls(directory, meta)
        index.verify_fingerprint()
        return index

    def __getstate__(self) -> tuple[Path, IndexMeta, Any]:
        return self.directory, self.meta, self.decoder

    def __setstate__(self, state: tuple[Path, IndexMeta, Any]) -> None:
        directory, meta, decoder = state
        SampleIndex.__init__(self, directory, meta)
        self.decoder = decoder

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return self.meta.num_samples

    @property
    def num_classes(self) -> int:
        """How many classes there are; labels are 0 … num_classes - 1."""
        return self.meta.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of the stored images; None when they differ."""
        return self.meta.image_shape

    @property
    def fingerprint(self) -> str:
        """Equal for two splits with the same samples in the same order."""
        return self.meta.fingerprint

    @functools.cached_property
    def has_keys(self) -> bool:
        """Whether the file of names fits the index."""
        try:
            return len(self._keys[1]) == self.num_samples
        except UserError:
            return False

    @functools.cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """How many samples each shard has, (shards,)."""
        return np.array([shard.num_samples for shard in self.meta.shards], np.int64)

    @property
    def lengths(self) -> NDArray[np.uint32] | None:
        """For text: how many tokens each sample has, (samples,); None for images."""
        return None if self.meta.tokens is None else self.samples["length"]

    def with_decoder(self, decoder: Any) -> "SampleIndex":
        """Returns the same index, whose samples are decoded by something else.

        Args:
            decoder: Has a method `decode` that takes the payloads of a sample by column.
        """
        other = copy.copy(self)
        other.decoder = decoder
        return other

    @property
    def shards_in(self) -> str:
        """Where the shards are: a path, or a URL of a folder."""
        return str(self.directory) if self.meta.shards_in is None else self.meta.shards_in

    def shard_path(self, shard: int) -> Path:
        """Returns the file of a local shard, by its number in the index."""
        return Path(self.shards_in, self.meta.shards[shard].name)

    def key(self, sample_id: int) -> str:
        """Returns the name a sample has in its shard.

        Raises:
            UserError: The file of names does not fit the index.
        """
        text, ends = self._keys
        start = int(ends[sample_id - 1]) + 1 if sample_id else 0
        return text[start : int(ends[sample_id])].tobytes().decode("utf-8", "backslashreplace")

    def verify_fingerprint(self) -> None:
        """Checks the index against its own fingerprint, and that it can be of such shards.

        The shards are not read.

        It takes 0.2 s for 1.28 million samples whose index is in the page cache.

        Raises:
            UserError: The index was changed after it was made, or says what cannot be.
        """
        folder = self.directory / INDEX_FOLDER
        found = fingerprint_of(folder, self.meta)
        if found != self.fingerprint:
            _ = self._keys  # which may know that it is the file of names
            raise UserError(
                f"{folder / SAMPLES_FILE}: changed since it was made, or {KEYS_FILE} or "
                f"{META_FILE} beside it: fingerprint {found[:16]}…, but {META_FILE} says "
                f"{self.fingerprint[:16]}…; {REMAKE}"
            )
        wrong = implausible(
            self.samples, self.meta, decoder=SampleDecoder.for_columns(self.meta.columns)
        )
        if wrong is not None:
            raise UserError(f"{folder}: {wrong}, which no index of these shards does; {REMAKE}")

    @functools.cached_property
    def _keys(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The mapped file of names and where each of them ends."""
        path = self.directory / INDEX_FOLDER / KEYS_FILE
        try:
            text = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise UserError(f"{path}: cannot be read ({error}); {REMAKE}") from error
        ends = np.flatnonzero(text == ord("\n"))
        if len(ends) != self.num_samples:
            raise UserError(
                f"{path}: {len(ends)} names for {self.num_samples} samples; damaged; {REMAKE}"
            )
        return text, ends


def _map_samples(path: Path, meta: IndexMeta) -> NDArray[Any]:
    if not (path.parent / KEYS_FILE).is_file():
        raise UserError(f"{path.parent / KEYS_FILE}: missing; {REMAKE}")
    dtype = sample_dtype(meta.columns, has_tokens=meta.tokens is not None)
    try:
        if path.stat().st_size > MOST_TABLE_HEADER_BYTES + meta.num_samples * dtype.itemsize:
            raise ValueError(f"it is larger than {meta.num_samples} records")
        # Not `load`, which also opens archives. Objects, which would be unpickled, it cannot map.
        samples: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    # NumPy reads the header as Python source, and what Python says of that may be anything.
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMAKE}") from error
    if samples.dtype != dtype or samples.shape != (meta.num_samples,):
        raise UserError(
            f"{path}: {samples.shape} records of {samples.dtype} do not fit {META_FILE}, "
            f"which says {meta.num_samples} samples with {', '.join(meta.columns)}; {REMAKE}"
        )
    return samples


def _check_shards(directory: Path, meta: IndexMeta) -> None:
    """Refuses shards that cannot be where they should, are missing, or of another size."""
    found_in = str(directory / INDEX_FOLDER / META_FILE)
    folder = directory
    names = [checked_file_name(shard.name, found_in=found_in) for shard in meta.shards]
    if meta.shards_in is not None:
        folder = Path(meta.shards_in)
        if is_command(meta.shards_in) or not (is_remote(meta.shards_in) or folder.is_absolute()):
            raise UserError(f"{found_in}: shards_in: {meta.shards_in!r} is no place of shards")
        if is_remote(meta.shards_in):
            return
    for name, shard in zip(names, meta.shards, strict=True):
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(
                f"{path}: missing, though the index lists this shard ({error.strerror}); {REMAKE}"
            ) from error
        check_file(path, folder=folder)
        if size != shard.bytes:
            raise UserError(
                f"{path}: {size} bytes, but {shard.bytes} when it was indexed: changed or cut "
                f"short; restore it or {REMAKE}"
            )


def _check_no_others(directory: Path, meta: IndexMeta) -> None:
    others = other_shards(directory, meta)
    if others:
        raise UserError(
            f"{directory}: {a_few(others, most=3)}: not in the index, so training would leave its "
            f"samples out; remove {INDEX_FOLDER}/ and make the index anew, move the file away, or "
            "name the shards that are meant, as DIR/train-{000000..000003}.tar"
        )


def _check_names(location: str | Path, *, given: list[str], meta: IndexMeta) -> None:
    indexed = {shard.name for shard in meta.shards}
    unknown, left_out = sorted(set(given) - indexed), sorted(indexed - set(given))
    differences = [
        *([f"{a_few(unknown)} is not in the index"] if unknown else []),
        *([f"{a_few(left_out)} is in the index but not named"] if left_out else []),
    ]
    if differences:
        raise UserError(
            f"{location}: does not name the shards that were indexed: {'; '.join(differences)}; "
            f"name them all, or give the folder"
        )
