"""How shards are read from where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError


@dataclass(frozen=True)
class SourceOptions:
    """Settings of a source.

    Attributes:
        cache_dir: Folder on a fast local disk. The indexes of remote splits are kept in it, and
            whole shards if `cache_limit` is not 0. May be shared by processes and by splits.
        cache_limit: How many bytes the cached shards may take in all; 0 reads only those bytes of
            shards that are asked for and keeps none.
        num_retries: For http(s): how often something is tried again after a failure that may pass,
            such as a lost connection, a stall, or an answer that says the server is overloaded.
            The waits before it grow from a quarter of a second to at most 30 seconds.
        timeout_seconds: For http(s): a connection that is silent for so long is given up.
        max_connections: For http(s): how many ranges are asked for at the same time.
        storage_options: For fsspec: what the file system is made with, such as `anon`.
        allows_commands: For `pipe:` locations, which run a command of the shell: they must be
            switched on, so that a location from a foreign config runs nothing.

    Raises:
        UserError: A setting is out of range.
    """

    cache_dir: Path | None = None
    cache_limit: int = 0
    num_retries: int = 8
    timeout_seconds: float = 30.0
    max_connections: int = 8
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    allows_commands: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.cache_dir, str):  # the annotation is no check
            object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        if self.cache_limit < 0:
            raise UserError(f"cache_limit: {self.cache_limit} is negative; 0 caches no shards")
        if self.cache_limit and self.cache_dir is None:
            raise UserError(
                f"cache_limit: {self.cache_limit} has no effect without a cache_dir; give one"
            )
        if self.num_retries < 0:
            raise UserError(f"num_retries: {self.num_retries} is negative; 0 does not try again")
        if not 0 < self.timeout_seconds < float("inf"):
            raise UserError(f"timeout_seconds: {self.timeout_seconds} is no positive number")
        if self.max_connections < 1:
            raise UserError(f"max_connections: {self.max_connections} is not positive")

    def refuse_all_but(self, *names: str, location: str) -> None:
        """Checks that no setting is changed that has no effect.

        Args:
            names: Settings that have one.
            location: What is to be read.

        Raises:
            UserError: There is such a setting.
        """
        defaults = SourceOptions()
        for name in (each.name for each in fields(self)):
            if name not in names and getattr(self, name) != getattr(defaults, name):
                raise UserError(f"{name}: has no effect on {location}; leave it out")
