"""Reads samples by id, wherever in the shards they lie."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.decoding import Sample
from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.index.format import offset_field, size_field
from data_pipelines.reading.runs import plan_runs
from data_pipelines.reading.shard_files import ShardFiles


class ShardReader:
    """Reads and decodes samples of a split, and checks each against its checksum.

    Safe to use after a fork and to send to another process: files are opened on first use.
    """

    def __init__(self, index: SampleIndex, *, max_open_shards: int = 32) -> None:
        """Opens nothing yet.

        Args:
            index: The split to read.
            max_open_shards: How many shard files to keep open at most.
        """
        self._index = index
        self._files = ShardFiles(index, max_open=max_open_shards)

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        self._files.close()

    def read(self, sample_ids: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Reads samples, each with its place in `sample_ids`.

        They come in the order they are stored, neighbours in one read, and not in the order asked
        for: the caller puts each where its place says. Memory holds one run of neighbours at once.

        Raises:
            UserError: A shard is missing, cut short or damaged, or a sample cannot be decoded; the
                message names the shard and the sample.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < self._index.num_samples), ids
        records = self._index.samples[ids]
        columns = self._index.meta.columns
        # (samples, columns)
        offsets = np.stack([records[offset_field(name)] for name in columns], 1).astype(np.int64)
        stops = offsets + np.stack([records[size_field(name)] for name in columns], 1)
        checksums = records["crc32"].tolist()
        # The files of a sample follow each other in its shard, so a sample is one range of bytes
        # with tar headers in between.
        for run in plan_runs(
            records["shard"].astype(np.int64), starts=offsets.min(axis=1), stops=stops.max(axis=1)
        ):
            try:
                content = self._files.read(run.shard, start=run.start, stop=run.stop)
            except UserError as error:
                keys = ", ".join(repr(self._index.key(int(ids[place]))) for place in run.places[:3])
                raise UserError(f"{error} (while reading sample {keys})") from error
            starts_in_run = (offsets[run.places] - run.start).tolist()
            stops_in_run = (stops[run.places] - run.start).tolist()
            for place, begins, ends in zip(run.places, starts_in_run, stops_in_run, strict=True):
                payloads = [content[begin:end] for begin, end in zip(begins, ends, strict=True)]
                yield place, self._sample(int(ids[place]), payloads, checksums[place])

    def _sample(self, sample_id: int, payloads: list[bytes], checksum: int) -> Sample:
        crc32 = 0
        for payload in payloads:
            crc32 = zlib.crc32(payload, crc32)
        if crc32 != checksum:
            raise self._damage(
                sample_id,
                f"damaged or not what was indexed: checksum {crc32:08x} instead of {checksum:08x}; "
                "restore the shard",
            )
        try:
            return self._index.decoder.decode(
                dict(zip(self._index.meta.columns, payloads, strict=True))
            )
        except ValueError as error:
            raise self._damage(sample_id, str(error)) from error

    def _damage(self, sample_id: int, what: str) -> UserError:
        shard = self._index.shard_path(int(self._index.samples[sample_id]["shard"]))
        return UserError(f"{shard}: sample {self._index.key(sample_id)!r}: {what}")
