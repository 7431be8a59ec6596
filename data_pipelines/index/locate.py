"""From what the user wrote to the folder that holds a split, or to shards."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import braceexpand

from data_pipelines.errors import UserError, a_few
from data_pipelines.index.format import INDEX_FOLDER, META_FILE, REMAKE, IndexMeta
from data_pipelines.sources import ListedFolder, open_source
from data_pipelines.sources.file_names import is_no_data


def find_split(location: str | Path) -> tuple[Path, list[str] | None]:
    """Finds the folder of a split.

    Args:
        location: The folder itself, or the shards in it, as `DIR/train-{000000..000003}.tar` or
            `DIR/train-*.tar`.

    Returns:
        The folder, which has an `index/`, and the file names of the shards if those were given.

    Raises:
        UserError: There is no such folder or it has no index.
    """
    path = Path(location)
    if is_folder(path):
        directory, names = path, None
    elif path.suffix == ".tar":
        directory, names = _in_one_folder(str(location))
    else:
        raise UserError(
            f"{location}: no such folder; give the folder of a split or its shards as "
            f"DIR/train-{{000000..000003}}.tar, or {REMAKE}"
        )
    if not is_folder(directory) or not (directory / INDEX_FOLDER / META_FILE).is_file():
        raise UserError(f"{directory}: {_why_not_a_split(directory)}")
    return directory, names


def other_shards(directory: Path, meta: IndexMeta) -> list[str]:
    """Returns the names of the shards in a split's folder that its index does not have."""
    indexed = {shard.name for shard in meta.shards}
    return [path.name for path in _not_hidden(directory.glob("*.tar")) if path.name not in indexed]


def check_file(path: Path, *, folder: Path) -> None:
    """Refuses what is no file, or lies in a folder that is a link out of a folder.

    A link to a file is followed, as those of a hub's cache, whose snapshots are links: its size and
    its checksums tell whether it is the file that was indexed.

    Args:
        path: In `folder` or in a folder inside. What is not there is left to who reads it.
        folder: May itself be a link, or lie behind one.

    Raises:
        UserError: It is a pipe, a device or a folder, or lies behind such a link.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file")
    if path.parent.is_symlink() and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path.parent}: a link to {path.parent.resolve()}, which is outside of {folder}; put "
            "the folder itself there, or give the one that holds it"
        )


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        UserError: It cannot be looked at; it may be longer than paths can be.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"{path}: cannot be looked at: {error.strerror}") from error


def find_shards(patterns: Sequence[str | Path]) -> list[Path]:
    """Finds the shards that patterns stand for.

    Args:
        patterns: Each a file, a folder, or a pattern with braces or `*`.

    Returns:
        At least one, in the order of the patterns; those of a folder or a `*` by name.

    Raises:
        UserError: A pattern stands for nothing, or for something that is not there.
    """
    shards: list[Path] = []
    for pattern in patterns:
        for path in _expand(str(pattern)):
            shards += _shards_of(path)
    if not shards:
        raise UserError("no shards given; name them as DIR/train-{000000..000003}.tar")
    return shards


def find_remote_shards(patterns: Sequence[str]) -> tuple[str, list[str]]:
    """Finds the shards that patterns of URLs stand for.

    Args:
        patterns: Each a file, or one with braces; where files can be listed, also with `*` in its
            name, or a folder.

    Returns:
        The URL of their folder, and their names in the order of the patterns.

    Raises:
        UserError: They lie in several folders, cannot be listed, or a pattern stands for nothing.
    """
    folders: set[str] = set()
    names: list[str] = []
    for pattern in patterns:
        for place in _expanded(pattern):
            is_file = place.endswith(".tar")
            folder, _, name = place.rpartition("/") if is_file else (place.rstrip("/"), "", "*.tar")
            folders.add(folder)
            names += _listed(folder, name) if "*" in name else [name]
    if len(folders) != 1:
        raise UserError(f"the shards of a split lie in one folder, not in {a_few(sorted(folders))}")
    return folders.pop(), names


def _listed(folder: str, pattern: str) -> list[str]:
    source = open_source(folder)
    if not isinstance(source, ListedFolder):
        raise UserError(
            f"{folder}/{pattern}: nothing lists the files there; name the shards, as "
            "train-{000000..000003}.tar"
        )
    found = [name for name in source.names(pattern) if not is_no_data(name)]
    if not found:
        raise UserError(f"{folder}/{pattern}: no such shards")
    return found


def _shards_of(path: Path) -> list[Path]:
    if "*" in path.name:
        is_folder(path.parent)
        found = _not_hidden(path.parent.glob(path.name))
    elif is_folder(path):
        found = _not_hidden(path.glob("*.tar"))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise UserError(f"{path}: no such shards")
    return found


def _in_one_folder(pattern: str) -> tuple[Path, list[str]]:
    paths = [
        path
        for each in _expand(pattern)
        for path in (_shards_of(each) if "*" in each.name else [each])
    ]
    folders = sorted({str(path.parent) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"{pattern}: the shards of a split lie in one folder, not in {a_few(folders)}"
        )
    return paths[0].parent, [path.name for path in paths]


def _expand(pattern: str) -> list[Path]:
    return list(map(Path, _expanded(pattern)))


def _expanded(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: the braces do not match ({error})") from error


def _not_hidden(paths: Iterable[Path]) -> list[Path]:
    # Such as the `._train-000000.tar` that macOS puts beside a file.
    return sorted(path for path in paths if not is_no_data(path.name))


def _why_not_a_split(directory: Path) -> str:
    if not is_folder(directory):
        return f"no such folder; {REMAKE}"
    splits = sorted(
        path.parent.parent.name for path in directory.glob(f"*/{INDEX_FOLDER}/{META_FILE}")
    )
    if splits:
        return f"a prepared data set; give one of its splits: {a_few(splits)}"
    return f"has no {INDEX_FOLDER}/{META_FILE}, so it is no prepared split; {REMAKE}"
