"""Locations as messages show them: without passwords and access tokens."""

import re
from urllib.parse import SplitResult, urlsplit

from data_pipelines.errors import UserError

# User and password of a URL, up to the last @ before the path; and its query.
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
# Shorter ones might be any part of a message.
_SHORTEST_PASSWORD = 4
_QUERY = re.compile(r"(://[^?\n]*)\?[^\s'\"]*")


def split_url(location: str) -> SplitResult:
    """Returns the parts of a URL.

    Raises:
        UserError: It has a host that no URL has, such as `[::1` or `[x]`.
    """
    try:
        return urlsplit(location)
    except ValueError as error:
        raise UserError(f"{without_secrets(location)}: no URL: {error}") from error


def without_secrets(text: str, *, of: str = "") -> str:
    """Returns a location, or a message that has some, without users, passwords and queries.

    Args:
        text: URLs in it may be chained, as `simplecache::ftp://user:password@host/folder`. A
            `pipe:` command is shown as it is: where it keeps its secrets is not known.
        of: A location whose user and password are left out, too, where they stand outside of a URL.
    """
    for user in _USER.findall(of):
        text = text.replace(user, "")
        password = user[:-1].partition(":")[2]
        if len(password) >= _SHORTEST_PASSWORD:
            text = text.replace(password, "…")
    return _QUERY.sub(r"\1", _USER.sub("", text))
