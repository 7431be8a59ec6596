"""What names of files and folders say: whether they stay inside, are data, or name a split."""

import re

from data_pipelines.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
_BESIDE_THE_SPLIT = re.compile(r"(set|split|data|images?|imgs?|folder)$")
# macOS puts it into archives, with a `._NAME` for each file.
_OF_A_MAC = "__MACOSX"


def checked_file_name(name: str, *, found_in: str, kind: str = "shard") -> str:
    """Returns the name of a file or folder if it stays inside the one it is in.

    Args:
        name: As the index gives it.
        found_in: Where it stands, for the message.
        kind: What it names, for the message.

    Raises:
        UserError: It is empty, hidden, leads out of the folder, or has characters that no file name
            has.
    """
    if not name or name.startswith(".") or any(part in name for part in "/\\\0\n\r"):
        raise UserError(
            f"{found_in}: {name!r} is no name of a {kind}: it must name something in the folder "
            f"that holds every {kind} and nothing outside of it"
        )
    return name


def checked_sha256(digest: str, *, found_in: str) -> str:
    """Returns a SHA-256 if it is one, in lower-case hexadecimal.

    Raises:
        UserError: It is not.
    """
    if not _SHA256.fullmatch(digest):
        raise UserError(f"{found_in}: {digest!r} is no SHA-256 in lower-case hexadecimal")
    return digest


def is_no_data(name: str) -> bool:
    """Whether a file or folder is one that systems and editors leave behind: hidden, or a Mac's."""
    return name.startswith(".") or name == _OF_A_MAC


def is_no_member(path: str) -> bool:
    """Whether a file in an archive is no data: hidden itself, or below a folder of a Mac."""
    *folders, name = path.split("/")
    return is_no_data(name) or _OF_A_MAC in folders


def split_of(name: str) -> str | None:
    """Returns which split a folder or file is called after: `train`, `val` or `test`, if any.

    Case, digits and signs say nothing, nor does what people add: `Train_2017`, `VALIDATION-set`.
    """
    letters = "".join(filter(str.isalpha, name.casefold()))
    words = {letters, _BESIDE_THE_SPLIT.sub("", letters)}
    return next((split for split, names in _SPLITS.items() if words & set(names)), None)
