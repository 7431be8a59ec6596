"""The index on disk: `index/` beside the shards, with meta.json, samples.npy and keys.txt.

samples.npy has one record a sample and is mapped into memory, so that all workers of a machine
share one copy of it. keys.txt, one key a line in the same order, is only read where keys are asked
for: in error messages, and to hand samples to `webdataset`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from data_pipelines.durable_files import sha256_of_file
from data_pipelines.errors import UserError
from data_pipelines.index.limits import MOST_CLASSES, MOST_META_BYTES

INDEX_FOLDER = "index"
META_FILE = "meta.json"
SAMPLES_FILE = "samples.npy"
KEYS_FILE = "keys.txt"

FORMAT_NAME = "data_pipelines.index"
FORMAT_VERSION = 1

_FINGERPRINTED = {
    "columns",
    "num_samples",
    "num_classes",
    "class_counts",
    "image_shape",
    "tokens",
}

# The way out that messages about missing or damaged data name.
REMAKE = (
    "make the data anew with `msam-scale data prepare NAME --out DIR`, or the index of shards you "
    "have with `msam-scale data index`"
)


# Fits the signed 64 bits that positions in files have.
_Count = Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardMeta(_Record):
    """One shard: its file name, its size and what it holds."""

    name: str
    bytes: _Count
    num_samples: _Count
    sha256: str


class TokenMeta(_Record):
    """What the tokens of a text split are.

    Attributes:
        rows: What each row of a sample's tokens is, such as `input_ids`; the model's names.
        pad_token_id: What `input_ids` are filled up with in a batch; all other rows with 0.
    """

    rows: Annotated[tuple[str, ...], pydantic.Field(min_length=1, max_length=16)]
    pad_token_id: Annotated[int, pydantic.Field(ge=0, lt=1 << 31)] = 0


class IndexMeta(_Record):
    """What meta.json says about a split.

    Attributes:
        columns: Extensions of the files of every sample, sorted.
        class_counts: How many samples each class has.
        image_shape: (height, width, channels) when all images have the same, else None.
        preshuffle_seed: Seed of the shuffle the samples were written in; None when they were not,
            or nobody knows.
        tokens: For text: what the tokens are; None for images.
        ignored_columns: Extensions of files in the shards that are not read.
        shards_in: Where the shards are, where they do not lie in the folder of the index: an
            absolute path, or a URL of a folder.
        fingerprint: SHA-256 over everything that defines the samples, see `fingerprint_of`.
    """

    format: str
    version: int
    split: str
    num_samples: Annotated[int, pydantic.Field(ge=1, lt=1 << 48)]
    num_classes: Annotated[int, pydantic.Field(ge=1, le=MOST_CLASSES)]
    class_counts: tuple[int, ...]
    columns: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    preshuffle_seed: int | None
    tokens: TokenMeta | None = None
    ignored_columns: tuple[str, ...] = ()
    shards_in: str | None = None
    shards: tuple[ShardMeta, ...]
    created_by: str
    fingerprint: str

    @classmethod
    def read(cls, path: Path) -> "IndexMeta":
        """Reads meta.json.

        Raises:
            UserError: It is missing, damaged, or of a version this program does not know.
        """
        try:
            if path.stat().st_size > MOST_META_BYTES:
                raise UserError(f"{path}: larger than any index; {REMAKE}")
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {REMAKE}") from error
        found = content if isinstance(content, dict) else {}
        if found.get("format") != FORMAT_NAME or found.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: format {_shown(found, 'format')} version {_shown(found, 'version')} is "
                f"not known, only {FORMAT_NAME!r} version {FORMAT_VERSION}; {REMAKE}"
            )
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: {key}: {first['msg']}; {REMAKE}") from error

    def write(self, path: Path) -> None:
        """Writes meta.json; what is only there for some splits is left out for the others."""
        text = self.model_dump_json(indent=1, exclude_defaults=True) + "\n"
        path.write_text(text, encoding="utf-8")


def _shown(found: Mapping[str, Any], key: str) -> str:
    return repr(found.get(key))[:80]


def sample_dtype(columns: Sequence[str], *, has_tokens: bool) -> np.dtype[Any]:
    """Returns the record of one sample in samples.npy.

    `crc32` is over the payloads of all columns, one after the other in the order of `columns`.
    Text has `length`, the number of tokens, besides: batches are padded to the longest of their
    samples, which must be known before any is read.

    Args:
        columns: Extensions of the files of every sample, sorted.
        has_tokens: Whether the samples are text.
    """
    extents = [
        field
        for column in columns
        for field in ((offset_field(column), "<u8"), (size_field(column), "<u4"))
    ]
    length = [("length", "<u4")] if has_tokens else []
    return np.dtype([("shard", "<u4"), *extents, ("crc32", "<u4"), ("label", "<i4"), *length])


def offset_field(column: str) -> str:
    """Returns the field that says where in the shard a column's payload begins."""
    return f"{column}.offset"


def size_field(column: str) -> str:
    """Returns the field that says how many bytes a column's payload has."""
    return f"{column}.size"


def fingerprint_of(folder: Path, meta: IndexMeta) -> str:
    """Returns the fingerprint of a split: two are equal when the samples are, in the same order.

    It covers everything that readers rely on, and so finds an index that was changed or damaged;
    names for people and file names, which may be others for the same samples, are left out.

    Args:
        folder: Holds samples.npy and keys.txt.
        meta: What meta.json says; its fingerprint is not looked at.

    Raises:
        UserError: A file cannot be read.
    """
    content = meta.model_dump(mode="json", include=_FINGERPRINTED)
    content["shards"] = [[shard.bytes, shard.num_samples, shard.sha256] for shard in meta.shards]
    for name in (SAMPLES_FILE, KEYS_FILE):
        try:
            content[name] = sha256_of_file(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error}); {REMAKE}") from error
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()
