"""Damaged data: found and named wherever it is read from, or replaced as the policy says."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import serving
from PIL import Image
from shards import damage_sample, indexed, npy, overwrite, read_all, read_numbers, write_shards

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.reading import BadDataPolicy, BadSample, BadSamples, open_split
from data_pipelines.reading.stand_ins import stand_ins
from data_pipelines.sources import SourceOptions

MakeNumbered = Callable[..., SampleIndex]
Damage = Callable[[SampleIndex], None]
SUBSTITUTE = BadDataPolicy("substitute", seed=3, max_samples=10, max_fraction=0.5)


def truncated(index: SampleIndex) -> None:
    path = index.shard_path(1)
    path.write_bytes(path.read_bytes()[: int(index.samples[13]["npy.offset"]) + 9])


def header_zeroed(index: SampleIndex) -> None:
    with tarfile.open(index.shard_path(1)) as tar:
        offset = tar.getmembers()[6].offset
    overwrite(index.shard_path(1), offset, bytes(512))
    with tarfile.open(index.shard_path(1)) as tar:
        assert len(tar.getmembers()) == 6  # the rest is gone for readers that walk the tar


def bit_flipped(index: SampleIndex) -> None:
    damage_sample(index, 13)


def missing(index: SampleIndex) -> None:
    index.shard_path(1).unlink()


def replaced_by_one_of_its_size(index: SampleIndex) -> None:
    shutil.copyfile(index.shard_path(2), index.shard_path(1))


def reindexed_with_other_samples(index: SampleIndex) -> None:
    """Puts a stale index beside the shards: that of the same names with other samples in them."""
    for number in (0, 1, 2):
        shutil.copyfile(index.shard_path((number + 1) % 3), index.directory / f"new-{number}")
    for number in (0, 1, 2):
        (index.directory / f"new-{number}").replace(index.shard_path(number))


# What reading everything says, of the first damaged shard; None: it reads everything.
DAMAGE: dict[Damage, tuple[int, str | None]] = {
    truncated: (1, r"\d+ bytes, but \d+ when it was indexed: changed or cut short"),
    header_zeroed: (1, None),
    bit_flipped: (1, r"sample 'sample13': damaged or not what was indexed"),
    missing: (1, r"missing"),
    replaced_by_one_of_its_size: (1, r"sample 'sample1\d': damaged or not what was indexed"),
    reindexed_with_other_samples: (0, r"sample 'sample\d': damaged or not what was indexed"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_or_does_no_harm_wherever_it_is(
    make_numbered: MakeNumbered, tmp_path: Path, damage: Damage
) -> None:
    index = make_numbered(35)
    damage(index)
    cache = tmp_path / "cache"
    shard, message = DAMAGE[damage]
    with serving(index.directory) as server:
        for location, options in (
            (str(index.directory), SourceOptions()),
            (server.url, SourceOptions(cache_dir=cache)),
            (server.url, SourceOptions(cache_dir=cache, cache_limit=10**7)),
            (f"local://{index.directory}", SourceOptions(cache_dir=cache)),
        ):
            if message is None:
                assert read_all(open_split(location, options=options)) == list(range(35))
                continue
            with pytest.raises(UserError, match=rf"^{location}/part-00000{shard}.tar: {message}"):
                read_all(open_split(location, options=options))


def test_damage_while_in_use_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    damage_sample(index, 13)
    overwrite(index.shard_path(0), int(index.samples[4]["cls.offset"]), b"5")
    reader = ShardReader(SampleIndex.open(index.directory))
    assert read_numbers(reader, [12, 14]) == [12, 14]
    for number in (13, 4):  # of a pixel and of a label
        where = rf"part-00000{number // 10}.tar: sample 'sample{number}': damaged or not what was"
        with pytest.raises(UserError, match=where):
            read_numbers(reader, [12, number, 14])
    cut = index.shard_path(2)
    cut.write_bytes(cut.read_bytes()[: int(index.samples[25]["npy.offset"]) + 3])
    with pytest.raises(UserError, match=r"part-000002.tar: cut short: .*sample 'sample25'"):
        read_numbers(reader, [25])
    assert read_numbers(reader, [24]) == [24]
    cut.unlink()
    with pytest.raises(UserError, match=r"part-000002.tar: cannot be read: .*No such file"):
        read_numbers(ShardReader(index), [25])


@pytest.fixture
def photos(tmp_path: Path) -> SampleIndex:
    """Twenty JPEG images, of which number 7 ends in its middle though its header is whole."""
    rng, samples = np.random.default_rng(0), []
    for number in range(20):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(stream, "JPEG")
        content = stream.getvalue()
        whole = len(content) if number != 7 else len(content) // 2
        samples.append({"jpg": content[:whole], "cls": str(number).encode()})
    return indexed(write_shards(tmp_path / "photos", samples, per_shard=20))


def test_image_that_cannot_be_decoded_is_named_or_replaced(photos: SampleIndex) -> None:
    with pytest.raises(UserError, match=r"part-000000.tar: sample 'sample7': column .jpg: "):
        list(ShardReader(photos).read(range(20)))
    policy = BadDataPolicy("substitute", max_fraction=0.1)
    reader = ShardReader(photos, on_error=policy)
    labels = {place: sample.label for place, sample in reader.read(range(20), epoch=0)}
    assert sorted(labels) == list(range(20))
    assert all(labels[number] == number for number in range(20) if number != 7)
    assert labels[7] != 7
    assert [bad.sample_id for bad in reader.bad_samples] == [7]


def test_stand_ins_depend_on_nothing_but_seed_epoch_and_sample(make_numbered: MakeNumbered) -> None:
    index = make_numbered(60)
    for damaged in (13, 14, 41):
        damage_sample(index, damaged)

    def read(batches: list[list[int]], *, epoch: int = 0, seed: int = 3) -> dict[int, int]:
        policy = BadDataPolicy("substitute", seed=seed, max_samples=10, max_fraction=0.5)
        found: dict[int, int] = {}
        for batch in batches:
            # A new reader for each, as in different workers.
            numbers = read_numbers(ShardReader(index, on_error=policy), batch, epoch=epoch)
            found |= dict(zip(batch, numbers, strict=True))
        return found

    one_batch = read([list(range(60))])
    assert {number for number in one_batch if one_batch[number] != number} == {13, 14, 41}
    backwards = list(range(59, -1, -1))
    assert read([backwards]) == one_batch
    assert read([backwards[start : start + 7] for start in range(0, 60, 7)]) == one_batch
    assert read([list(range(60))], epoch=1) != one_batch
    assert read([list(range(60))], seed=4) != one_batch


def test_stand_in_that_is_damaged_itself_is_passed_over(make_numbered: MakeNumbered) -> None:
    index = make_numbered(60)
    damage_sample(index, 13)
    first, second = (
        stand_in
        for stand_in, _ in zip(
            stand_ins(13, seed=3, epoch=0, num_samples=60, lengths=None), range(2), strict=False
        )
    )
    assert read_numbers(ShardReader(index, on_error=SUBSTITUTE), [13], epoch=0) == [first]
    damage_sample(index, first)
    reader = ShardReader(index, on_error=SUBSTITUTE)
    assert read_numbers(reader, [13], epoch=0) == [second]
    assert [bad.sample_id for bad in reader.bad_samples] == sorted([13, first])


def test_when_nothing_is_left_to_stand_in_that_is_said(make_numbered: MakeNumbered) -> None:
    index = make_numbered(5)
    for number in range(5):
        damage_sample(index, number)
    policy = BadDataPolicy("substitute", max_samples=10, max_fraction=1.0)
    with pytest.raises(UserError, match=r"'sample2': is damaged, and so is all that could stand"):
        list(ShardReader(index, on_error=policy).read([2], epoch=0))


def test_stand_ins_are_spread_over_all_samples_but_the_damaged_one() -> None:
    drawn = [
        next(stand_ins(3, seed=0, epoch=epoch, num_samples=8, lengths=None))
        for epoch in range(2000)
    ]
    counts = np.bincount(drawn, minlength=8)
    assert counts[3] == 0
    # 2000 draws of 7: 286 each, standard deviation 16.
    assert all(206 < counts[number] < 366 for number in range(8) if number != 3)


def test_text_is_replaced_by_none_longer_than_itself() -> None:
    lengths = np.array([9, 4, 7, 5, 12, 5], np.uint32)
    drawn = {
        next(stand_ins(3, seed=0, epoch=epoch, num_samples=6, lengths=lengths))
        for epoch in range(200)
    }
    assert drawn == {1, 5}
    assert list(stand_ins(1, seed=0, epoch=0, num_samples=6, lengths=lengths)) == []


def test_text_stand_ins_are_read(tmp_path: Path) -> None:
    samples = [
        {"tokens.npy": npy(np.full((1, length), number, np.int32)), "cls": str(number).encode()}
        for number, length in enumerate([6, 3, 5, 3, 8])
    ]
    index = indexed(write_shards(tmp_path / "text", samples))
    damage_sample(index, 3, column="tokens.npy")
    ((_, sample),) = ShardReader(index, on_error=SUBSTITUTE).read([3], epoch=0)
    assert (sample.tokens.tolist(), sample.label) == ([[1, 1, 1]], 1)


@pytest.mark.parametrize(
    ("policy", "num_damaged"),
    [
        (BadDataPolicy("substitute", max_samples=2, max_fraction=1.0), 3),
        (BadDataPolicy("substitute", max_samples=50, max_fraction=0.05), 4),
    ],
)
def test_more_damage_than_allowed_is_an_error(
    make_numbered: MakeNumbered, policy: BadDataPolicy, num_damaged: int
) -> None:
    index = make_numbered(60)
    for number in range(1, num_damaged):
        damage_sample(index, 10 * number)
    reader = ShardReader(index, on_error=policy)
    for epoch in range(2):  # the same ones again are not more
        assert len(list(reader.read(range(60), epoch=epoch))) == 60
    damage_sample(index, 51)
    message = rf"'sample51': .*\({num_damaged - 1} others of 60 were replaced, and on_error allows"
    with pytest.raises(UserError, match=message):
        list(reader.read(range(60), epoch=2))


@pytest.mark.parametrize("damage", [missing, truncated])
def test_shards_that_are_not_there_are_never_replaced(
    make_numbered: MakeNumbered, damage: Damage
) -> None:
    index = make_numbered(35)
    damage(index)
    with pytest.raises(UserError, match=r"part-000001.tar: (cannot be read|cut short)"):
        list(ShardReader(index, on_error=SUBSTITUTE).read(range(35), epoch=0))


def test_damage_is_told_once_and_kept_for_the_checkpoint(
    make_numbered: MakeNumbered, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_numbered(60)
    damage_sample(index, 13)
    reader = ShardReader(index, on_error=SUBSTITUTE)
    for epoch in range(3):
        assert len(list(reader.read([12, 13], epoch=epoch))) == 2
    assert caplog.text.count("'sample13': damaged or not what was indexed") == 1
    state = json.loads(json.dumps(reader.bad_samples.state()))
    assert [record["sample_id"] for record in state] == [13]
    assert "part-000001.tar: sample 'sample13'" in state[0]["where"]
    # What a worker found goes to the process it works for, once.
    assert [bad.sample_id for bad in reader.bad_samples.take_new()] == [13]
    assert reader.bad_samples.take_new() == []
    restored = BadSamples(SUBSTITUTE, num_samples=60)
    restored.load_state(state)
    restored.merge(reader.bad_samples)
    assert list(restored) == list(reader.bad_samples)
    few = BadSamples(BadDataPolicy("substitute", max_samples=1, max_fraction=1), num_samples=60)
    few.load_state(state)
    with pytest.raises(UserError, match=r"more than 1 of 60 samples are damaged"):
        few.merge([BadSample(20, "part-000002.tar: sample 'sample20'", "damaged")])


def test_impossible_policies_are_named(make_numbered: MakeNumbered) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "skip"}, r"on_error: 'skip' is unknown; there is: raise, substitute"),
        ({"seed": 5}, r"have no effect on 'raise'"),
        ({"kind": "substitute", "seed": -1}, r"seed: -1 is not in"),
        ({"kind": "substitute", "max_samples": 0}, r"max_samples: 0 is not positive"),
        ({"kind": "substitute", "max_fraction": 1.5}, r"max_fraction: 1.5 is not in \(0, 1\]"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            BadDataPolicy(**settings)
    with pytest.raises(UserError, match=r"0.001 of 40 samples is not one; 0.025 or more"):
        ShardReader(make_numbered(40), on_error=BadDataPolicy("substitute"))
