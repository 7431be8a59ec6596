"""From what the user wrote to the folder that holds a split, or to shards."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import braceexpand

from data_pipelines.errors import UserError, a_few
from data_pipelines.index.format import INDEX_FOLDER, META_FILE, REMAKE, IndexMeta
from data_pipelines.index.limits import MOST_NAME_CHARACTERS, MOST_SHARDS
from data_pipelines.sources import ListedFolder, open_source
from data_pipelines.sources.file_names import is_no_data

# `{000..117}` and `{a..z}`, with a step or without.
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")
# Braces in braces; a range in a list, with room to spare.
_MOST_LEVELS = 20


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
        _check_braces(pattern)
        return list(braceexpand.braceexpand(pattern))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{pattern}: the braces do not match ({error})") from error


def _check_braces(pattern: str) -> None:
    """Counts what braces stand for, before `braceexpand` makes all of it in memory.

    Raises:
        UserError: More than any data set has.
    """
    # For each open brace, then for what is around it: the names and their characters, of the
    # alternatives before and of the one that is being read; and where it begins.
    levels: list[tuple[int, int, int, int, int]] = []
    names, characters, others, other_characters, start = 1, 0, 0, 0, 0
    position = 0
    while position < len(pattern):
        sign = pattern[position]
        if sign == "{":
            levels.append((names, characters, others, other_characters, start))
            names, characters, others, other_characters, start = 1, 0, 0, 0, position + 1
        elif sign == "," and levels:
            others, other_characters = others + names, other_characters + characters
            names, characters = 1, 0
        elif sign == "}" and levels:
            found, length = others + names, other_characters + characters
            if (numbers := _NUMBERS.fullmatch(pattern, start, position)) is not None:
                first, last, step = numbers.groups()
                found = abs(int(last) - int(first)) // (int(step or 1) or 1) + 1
                length = found * max(len(first), len(last))
            elif _LETTERS.fullmatch(pattern, start, position):
                found = length = len(braceexpand.alphabet)  # at most
            names, characters, others, other_characters, start = levels.pop()
            names, characters = names * found, characters * found + length * names
        else:
            position += sign == "\\"
            characters += names
        if names > MOST_SHARDS or characters > MOST_NAME_CHARACTERS or len(levels) > _MOST_LEVELS:
            raise UserError(
                f"{pattern[:100]}: its braces stand for more than {MOST_SHARDS} shards, or for "
                f"{MOST_NAME_CHARACTERS} characters, or are more than {_MOST_LEVELS} deep, which "
                "no data set needs; the folder of the shards, or fewer of them, works"
            )
        position += 1


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
