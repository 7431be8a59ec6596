"""What a complete checkpoint consists of: written last, read first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipelines.durable_files import sha256_of_file
from msam_scale.checkpoint.errors import DamagedCheckpointError
from msam_scale.checkpoint.folder import MANIFEST
from msam_scale.checkpoint.json_files import check_regular, read_json

FORMAT, VERSION = "msam_scale checkpoint", 2
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(json|safetensors)")


class FileRecord(BaseModel):
    """A file as it was written.

    Attributes:
        size: in bytes.
        sha256: of its content, in hexadecimal.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Reads a file through."""
        return cls(size=path.stat().st_size, sha256=sha256_of_file(path))


class Manifest(BaseModel):
    """Every file of a checkpoint but the manifest itself.

    Attributes:
        format: tells what this is.
        version: of the format.
        files: by name.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: str = FORMAT
    version: int = VERSION
    files: Mapping[str, FileRecord]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads a checkpoint's manifest; the files that it names are not looked at.

        Raises:
            DamagedCheckpointError: it is missing or damaged, or of another version.
        """
        path = folder / MANIFEST
        content = read_json(path)
        if content.get("format") == FORMAT and content.get("version") != VERSION:
            raise DamagedCheckpointError(
                f"{path}: a checkpoint of version {content.get('version')!r}; this msam_scale "
                f"reads version {VERSION}"
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            raise DamagedCheckpointError(f"{path}: damaged: {first_mistake(error)}") from error
        if manifest.format != FORMAT:
            raise DamagedCheckpointError(f"{path}: not of a checkpoint")
        for name in manifest.files:
            if not _FILE_NAME.fullmatch(name):
                raise DamagedCheckpointError(f"{path}: {name!r} is no file of a checkpoint")
        return manifest

    def to_bytes(self) -> bytes:
        """As it is written."""
        return json.dumps(self.model_dump(), indent=2).encode()

    def check_sizes(self, folder: Path) -> None:
        """Looks whether all files are there, as long as they were written.

        Raises:
            DamagedCheckpointError: names the first that is not.
        """
        for name, record in self.files.items():
            path = folder / name
            check_regular(path)
            if (size := path.stat().st_size) != record.size:
                raise DamagedCheckpointError(
                    f"{path}: damaged: {size} bytes long instead of {record.size}"
                )

    def verify(self, folder: Path, *, index: int = 0, count: int = 1) -> None:
        """Reads files through and compares checksums.

        Args:
            folder: the checkpoint's.
            index: which of `count` equal shares of the files, so that ranks can split the work.
            count: of the shares.

        Raises:
            DamagedCheckpointError: names the first file that is not as it was written.
        """
        self.check_sizes(folder)
        for name in sorted(self.files)[index::count]:
            self.verify_file(folder, name)

    def verify_file(self, folder: Path, name: str) -> None:
        """The same for one file.

        Raises:
            DamagedCheckpointError: it is not in the manifest, or not as it was written.
        """
        path = folder / name
        if name not in self.files:
            raise DamagedCheckpointError(f"{path}: not in the checkpoint's manifest")
        check_regular(path)
        try:
            found = FileRecord.of(path)
        except OSError as error:
            raise DamagedCheckpointError(f"{path}: damaged: cannot be read: {error}") from error
        if found != self.files[name]:
            raise DamagedCheckpointError(f"{path}: damaged: its checksum is not the one written")


def first_mistake(error: ValidationError) -> str:
    """What pydantic found first, in a line."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, mistake["loc"]))
    return f"{place}: {mistake['msg']}" if place else str(mistake["msg"])
