"""No message shows a password or an access token of a location."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from data_pipelines import SourceOptions, UserError, open_source, open_split
from data_pipelines.sources import ByteRange, ShardSource, StoredFile
from data_pipelines.sources.redaction import without_secrets

SECRET = "SECRET"
FILE = StoredFile("a.tar", 10, "0" * 64)


def test_secrets_that_stand_alone() -> None:
    message = "wrong password SECRET of u:SECRET@h.org/x"
    shown = without_secrets(message, of="sftp://u:SECRET@h.org/x")
    assert shown == "wrong password … of h.org/x"
    assert without_secrets(message, of="sftp://h.org/x") == message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h.org/x/train", "https://h.org/x/train"),
        ("https://SECRET@h.org/x", "https://h.org/x"),
        ("https://u:SECRET@h.org/x", "https://h.org/x"),
        ("sftp://u:p@SECRET@h.org:22/x", "sftp://h.org:22/x"),
        ("https://h.org/x?token=SECRET", "https://h.org/x"),
        ("https://u:SECRET@h.org/x y?a=1&token=SECRET#x", "https://h.org/x y"),
        ("simplecache::ftp://u:SECRET@h.org/x", "simplecache::ftp://h.org/x"),
        (
            "cannot open 'ftp://u:SECRET@h/x?k=SECRET' (https://v:SECRET@g/y)",
            "cannot open 'ftp://h/x' (https://g/y)",
        ),
        ("s3://bucket/a@b/train", "s3://bucket/a@b/train"),
        ("/data/a@b/train?", "/data/a@b/train?"),
    ],
)
def test_locations_without_their_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


class _Unreachable(fsspec.AbstractFileSystem):
    """A file system whose errors tell everything."""

    protocol = "unreachable"

    def size(self, path: str) -> int:
        raise OSError(f"530 login failed: unreachable://user:{SECRET}@host/{path}")

    open = size


def read(source: ShardSource) -> None:
    list(source.read_ranges([ByteRange(FILE, 0, 10)]))


def fetch(source: ShardSource) -> None:
    list(source.pieces("a.tar", num_bytes=10))


@pytest.mark.parametrize("use", [read, fetch])
@pytest.mark.parametrize(
    "location",
    [
        "unreachable://user:SECRET@host/split",
        "nowhere://user:SECRET@host/split",
        "http://user:SECRET@127.0.0.1:1/split?token=SECRET",
        "ftp://user:SECRET@127.0.0.1:1/split",
    ],
)
def test_sources_that_cannot_be_reached(
    location: str, use: Callable[[ShardSource], None], caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("unreachable", _Unreachable, clobber=True)
    caplog.set_level(logging.DEBUG, logger="data_pipelines")
    options = SourceOptions(num_retries=0) if location.startswith("http") else SourceOptions()
    source = open_source(location, options=options)
    assert SECRET not in source.where("a.tar")
    assert source.where("a.tar").endswith("/split/a.tar")
    with pytest.raises(UserError) as raised:
        use(pickle.loads(pickle.dumps(source)))
    assert SECRET not in str(raised.value) + caplog.text
    assert str(raised.value).startswith(location.partition("://")[0] + "://")


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("https://u:SECRET@h.invalid/x", SourceOptions()),
        ("https://h.invalid/x?token=SECRET", SourceOptions()),
        ("sftp://u:SECRET@h.invalid/x", SourceOptions(num_retries=1)),
        ("https://u:SECRET@h.invalid/x", SourceOptions(storage_options={"a": 1})),
        ("https://u:SECRET@h.invalid/x#part", SourceOptions()),
        ("https://u:SECRET@/x?token=SECRET", SourceOptions(cache_dir=Path("cache"))),
        ("file://u:SECRET@host/x", SourceOptions()),
    ],
)
def test_locations_that_are_refused(location: str, options: SourceOptions) -> None:
    with pytest.raises(UserError) as raised:
        open_split(location, options=options)
    assert SECRET not in str(raised.value)
