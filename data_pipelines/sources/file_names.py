"""Names of files that an index or a location gives, before they are used in a path."""

import re

from data_pipelines.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
