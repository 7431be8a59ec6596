"""Preparing the film reviews from archives of exactly the published layout."""

from pathlib import Path

import archives
import pytest

from data_pipelines import SampleIndex, UserError, prepare

_LINES = [
    "1\t2.26666666667\tA gripping film, beautifully shot .",
    "2\t-0.6\tEffective but too tepid biopic",
    "3\t0.0\tNeither here nor there .",
    '4\t3.5\tA thoughtful, "quiet" triumph — for once .',
    "5\t-1.25\tDull .",
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    folder = tmp_path / "tokenizer"
    archives.write_tokenizer(folder)
    return str(folder)


def test_the_sign_of_the_rating_is_the_class(tmp_path: Path, tokenizer: str) -> None:
    source = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    archives.write_film_reviews(source, _LINES)
    made = prepare(
        "film_reviews", out=tmp_path / "out", source=source, tokenizer=tokenizer, val_fraction=0
    )
    index = SampleIndex.open(made.splits["train"])
    assert index.num_samples == 4
    assert index.meta.class_counts == (2, 2)
    assert any("left out 1 sentences rated 0" in note for note in made.notes)
    assert any("5 sentences, the published set has 10605" in note for note in made.notes)


def test_the_bare_file_gives_the_same_samples(tmp_path: Path, tokenizer: str) -> None:
    lines = _LINES * 5
    bare = tmp_path / "movieReviewSnippets_GroundTruth.txt"
    bare.write_bytes("\r\n".join(lines).encode())
    whole = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    archives.write_film_reviews(whole, lines)
    fingerprints = []
    for number, source in enumerate((bare, whole)):
        made = prepare(
            "film_reviews", out=tmp_path / f"out{number}", source=source, tokenizer=tokenizer
        )
        sizes = {name: SampleIndex.open(split).num_samples for name, split in made.splits.items()}
        assert sizes == {"train": 16, "val": 4}
        fingerprints.append(SampleIndex.open(made.splits["train"]).fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_other_files_are_refused(tmp_path: Path, tokenizer: str) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    cut = folder / "cut.tar.gz"
    archives.write_film_reviews(cut, _LINES)
    cut.write_bytes(cut.read_bytes()[:300])
    archives.tar_gz(folder / "other.tar.gz", {"something/else.txt": b"x"})
    (folder / "lines.txt").write_text("1\t2.5\ta text\n2\tgood\tanother\n")
    (folder / "latin.txt").write_bytes("1\t2.5\tcafé\n".encode("latin-1"))
    for name, words in {
        "cut.tar.gz": "damaged or cut short",
        "other.tar.gz": "holds no hutto_ICWSM_2014.tar.gz",
        "lines.txt": "line 2 is not",
        "latin.txt": "no UTF-8",
        "": "is a folder",
    }.items():
        with pytest.raises(UserError, match=words):
            prepare("film_reviews", out=tmp_path / "out", source=folder / name, tokenizer=tokenizer)
        assert not (tmp_path / "out").exists()
