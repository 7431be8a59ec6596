"""From the location of a split to what reads its files."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from data_pipelines.errors import UserError
from data_pipelines.sources.cached_folder import CachedFolder
from data_pipelines.sources.command_pipe import PREFIX, CommandPipe
from data_pipelines.sources.interface import ShardSource
from data_pipelines.sources.local_folder import LocalFolder
from data_pipelines.sources.options import SourceOptions
from data_pipelines.sources.redaction import split_url, without_secrets
from data_pipelines.sources.shard_cache import ShardCache

# As `s3://`, and fsspec's chains as `simplecache::s3://`; a Windows drive or `C:` is none.
_PROTOCOL = re.compile(r"([A-Za-z0-9_+.-]{2,}::)*([A-Za-z][A-Za-z0-9_+.-]+)://")
_SHARD_FOLDER = "shards"


def is_remote(location: str | Path) -> bool:
    """Whether a location is something else than a path of a mounted file system."""
    text = os.fspath(location)
    return is_command(text) or (
        _PROTOCOL.match(text) is not None and not text.startswith("file://")
    )


def is_command(location: str | Path) -> bool:
    """Whether a location is a command of the shell."""
    return os.fspath(location).startswith(PREFIX)


def local_path(location: str | Path) -> Path:
    """Returns the path of a local location, which may be written as `file:///PATH`.

    Raises:
        UserError: A `file:` URL names another machine.
    """
    text = os.fspath(location)
    if not text.startswith("file://"):
        return Path(text)
    parts = split_url(text)
    if parts.netloc not in ("", "localhost"):
        host = parts.netloc.rpartition("@")[2]
        raise UserError(
            f"{without_secrets(text)}: is on the machine {host}; mount it, and give its path"
        )
    return Path(unquote(parts.path))


def open_source(location: str | Path, *, options: SourceOptions | None = None) -> ShardSource:
    """Returns what reads the files of a folder; connects to nothing yet.

    Args:
        location: A path, `http(s)://…`, a URL of any protocol that fsspec knows (`s3://…`,
            `gs://…`), or `pipe:COMMAND` with `{name}` for the file, if options allow commands.
        options: How it is read.

    Raises:
        UserError: The location is none of these, needs a package that is missing, or an option has
            no effect on it.
    """
    options = options or SourceOptions()
    text = os.fspath(location)
    shown = without_secrets(text)
    source: ShardSource
    if not is_remote(location):
        options.refuse_all_but(
            "cache_limit", *(["cache_dir"] * bool(options.cache_limit)), location=shown
        )
        source = LocalFolder(local_path(location))
    elif is_command(text):
        source = _command_pipe(text, options)
    elif text.startswith(("http://", "https://")):
        from data_pipelines.sources.http_folder import HttpFolder

        options.refuse_all_but(
            "cache_dir",
            "cache_limit",
            "num_retries",
            "timeout_seconds",
            "max_connections",
            location=shown,
        )
        source = HttpFolder(
            text,
            num_retries=options.num_retries,
            timeout_seconds=options.timeout_seconds,
            max_connections=options.max_connections,
        )
    else:
        from data_pipelines.sources.fsspec_folder import FsspecFolder

        options.refuse_all_but("cache_dir", "cache_limit", "storage_options", location=shown)
        source = FsspecFolder(text, storage_options=options.storage_options)
    if not options.cache_limit:
        return source
    assert options.cache_dir is not None
    cache = ShardCache(options.cache_dir / _SHARD_FOLDER, max_bytes=options.cache_limit)
    return CachedFolder(source, cache=cache)


def _command_pipe(location: str, options: SourceOptions) -> CommandPipe:
    if not options.allows_commands:
        raise UserError(
            f"{location}: would run a command of the shell, which is not allowed; set "
            "allows_commands (data.allow_commands in a config of your own, --allow-code for one "
            "that came with a run) if you know and trust it"
        )
    options.refuse_all_but("cache_dir", "cache_limit", "allows_commands", location=location)
    if not options.cache_limit:
        raise UserError(
            f"{location}: a command gives whole shards only; give a cache_dir and a cache_limit "
            "to keep them in"
        )
    return CommandPipe(location)
