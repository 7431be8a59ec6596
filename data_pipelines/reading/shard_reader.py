"""Reads samples by id, wherever in the shards they lie."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.index.format import INDEX_FOLDER, META_FILE, offset_field, size_field
from data_pipelines.reading.bad_samples import BadDataPolicy, BadSample, BadSamples
from data_pipelines.reading.runs import plan_runs
from data_pipelines.reading.stand_ins import stand_ins
from data_pipelines.sources import ByteRange, ShardSource, StoredFile, open_source
from data_pipelines.sources.file_names import checked_file_name


class _DamagedError(Exception):
    """A sample is not what was indexed, or cannot be decoded."""


class ShardReader:
    """Reads and decodes samples of a split, and checks each against its checksum.

    Safe to use after a fork and to send to another process: files are opened on first use.

    Attributes:
        bad_samples: The damaged samples that this reader has met.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        source: ShardSource | None = None,
        on_error: BadDataPolicy | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            index: The split to read.
            source: Reads the bytes of its shards; by default from where the index says they are.
            on_error: What happens when a sample is damaged; by default an error.

        Raises:
            UserError: A shard's name leads out of the folder, or the policy allows no damage.
        """
        self._index = index
        self._source = open_source(index.shards_in) if source is None else source
        self._policy = BadDataPolicy() if on_error is None else on_error
        self._files = _stored_files(index)
        self.bad_samples = BadSamples(self._policy, num_samples=index.num_samples)

    def close(self) -> None:
        """Closes files and connections; reading opens them again."""
        self._source.close()

    def read(
        self, sample_ids: Sequence[int], *, epoch: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Reads samples, each with its place in `sample_ids`.

        They come in the order they are stored, neighbours in one read, stand-ins of damaged ones
        last, and not in the order asked for: the caller puts each where its place says. Memory
        holds a few runs of neighbours at once.

        Args:
            sample_ids: Each in 0 … num_samples - 1.
            epoch: What stands in for a damaged sample depends on it; needed for `substitute`.

        Yields:
            The place and what the index's decoder makes of the sample: a `Sample` or `TextSample`.

        Raises:
            UserError: A shard is missing, cut short or replaced, or a sample is damaged or cannot
                be decoded and is not to be substituted; the message names the shard and the sample.
        """
        is_substituting = self._policy.kind == "substitute"
        assert epoch is not None or not is_substituting, "stand-ins depend on the epoch"
        ids = np.asarray(sample_ids, dtype=np.int64)
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < self._index.num_samples), ids
        damaged: list[tuple[int, int]] = []
        for place, payloads, checksum in self._payloads(ids):
            sample_id = int(ids[place])
            sample = self._sample_or_none(sample_id, payloads, checksum)
            if sample is None:
                damaged.append((place, sample_id))
            else:
                yield place, sample
        for place, sample_id in damaged:
            assert epoch is not None
            yield place, self._stand_in(sample_id, epoch)

    def _payloads(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, list[bytes], int]]:
        """Yields (place, payloads by column, checksum) of samples, as they are stored."""
        records = self._index.samples[ids]
        columns = self._index.meta.columns
        # (samples, columns)
        offsets = np.stack([records[offset_field(name)] for name in columns], 1).astype(np.int64)
        stops = offsets + np.stack([records[size_field(name)] for name in columns], 1)
        checksums = records["crc32"].tolist()
        # The files of a sample follow each other in its shard, so a sample is one range of bytes
        # with tar headers in between.
        runs = list(
            plan_runs(
                records["shard"].astype(np.int64),
                starts=offsets.min(axis=1),
                stops=stops.max(axis=1),
                max_gap_bytes=self._source.max_gap_bytes,
            )
        )
        contents = self._source.read_ranges(
            [ByteRange(self._files[run.shard], run.start, run.stop) for run in runs]
        )
        for run in runs:
            try:
                content = next(contents)
            except UserError as error:
                keys = ", ".join(repr(self._index.key(int(ids[place]))) for place in run.places[:3])
                raise UserError(f"{error} (while reading sample {keys})") from error
            starts_in_run = (offsets[run.places] - run.start).tolist()
            stops_in_run = (stops[run.places] - run.start).tolist()
            for place, begins, ends in zip(run.places, starts_in_run, stops_in_run, strict=True):
                payloads = [content[begin:end] for begin, end in zip(begins, ends, strict=True)]
                yield place, payloads, checksums[place]

    def _sample_or_none(self, sample_id: int, payloads: list[bytes], checksum: int) -> Any | None:
        """Decodes a sample; None when it is damaged and something else is to stand in."""
        try:
            return self._decoded(sample_id, payloads, checksum)
        except _DamagedError as error:
            where = f"{self._where(sample_id)}: sample {self._index.key(sample_id)!r}"
            self.bad_samples.add(BadSample(sample_id, where, str(error)))
            return None

    def _decoded(self, sample_id: int, payloads: list[bytes], checksum: int) -> Any:
        found = _crc32(payloads)
        if found != checksum and self._source.report_damage(self._file_of(sample_id)):
            ((_, payloads, _),) = self._payloads(np.array([sample_id], np.int64))
            found = _crc32(payloads)
        if found != checksum:
            raise _DamagedError(
                f"damaged or not what was indexed: checksum {found:08x} instead of {checksum:08x}; "
                "restore the shard"
            )
        try:
            return self._index.decoder.decode(
                dict(zip(self._index.meta.columns, payloads, strict=True))
            )
        except ValueError as error:
            raise _DamagedError(str(error)) from error

    def _stand_in(self, sample_id: int, epoch: int) -> Any:
        for stand_in in stand_ins(
            sample_id,
            seed=self._policy.seed,
            epoch=epoch,
            num_samples=self._index.num_samples,
            lengths=self._index.lengths,
        ):
            ((_, payloads, checksum),) = self._payloads(np.array([stand_in], np.int64))
            sample = self._sample_or_none(stand_in, payloads, checksum)
            if sample is not None:
                return sample
        raise UserError(
            f"{self._where(sample_id)}: sample {self._index.key(sample_id)!r}: is damaged, and so "
            "is all that could stand in for it; restore the shards"
        )

    def _file_of(self, sample_id: int) -> StoredFile:
        return self._files[int(self._index.samples[sample_id]["shard"])]

    def _where(self, sample_id: int) -> str:
        return self._source.where(self._file_of(sample_id).name)


def _stored_files(index: SampleIndex) -> list[StoredFile]:
    found_in = str(index.directory / INDEX_FOLDER / META_FILE)
    return [
        StoredFile(checked_file_name(shard.name, found_in=found_in), shard.bytes, shard.sha256)
        for shard in index.meta.shards
    ]


def _crc32(payloads: Sequence[bytes]) -> int:
    """Returns the checksum over payloads, one after the other."""
    crc32 = 0
    for payload in payloads:
        crc32 = zlib.crc32(payload, crc32)
    return crc32
