"""Other people's loaders: torch's `DataLoader` and `webdataset` get the same batches."""

import gc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from numpy.typing import NDArray
from shards import make_photos, make_texts
from torch.utils.data import DataLoader

from data_pipelines import MicroBatchLoader, SampleIndex, ShardReader, UserError, transform_preset
from data_pipelines.adapters import IndexedDataset, MiniBatchSampler, ScheduledShards
from data_pipelines.sources import LocalFolder

POSITIONS = [range(4), range(4, 8)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_photos(tmp_path_factory.mktemp("photos") / "train", 45)


def plan(order: str, **changes: int) -> dict[str, Any]:
    settings = {"seed": 3, "batch_size": 8, "first_step": 0, "num_steps": 12, **changes}
    return {"order": order, "positions": POSITIONS, **settings}


def expected(
    index: SampleIndex, order: str, transform: str, **changes: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = MicroBatchLoader(
        index, transform=transform_preset(transform), num_workers=0, **plan(order, **changes)
    )
    return [(images.clone(), labels.clone()) for images, labels in batches]


def test_a_reader_that_leaves_a_sample_out_is_noticed(
    photos: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = IndexedDataset(photos, seed=0)
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, ids: islice(read(self, ids), 2))
    assert len(dataset.__getitems__([(0, 3), (0, 1)])) == 2
    with pytest.raises(AssertionError, match="the reader left samples out"):
        dataset.__getitems__([(0, 3), (0, 1), (0, 2)])


@pytest.mark.layouts
@pytest.mark.parametrize(("order", "num_workers"), [("global", 2), ("lanes:lanes=2,shards=1", 0)])
def test_torch_dataloader_gets_the_same_batches(
    photos: SampleIndex, order: str, num_workers: int
) -> None:
    transform = transform_preset("inception_tv:size=6")
    batches = DataLoader(
        IndexedDataset(photos, seed=3, transform=transform.augment),
        batch_sampler=MiniBatchSampler(photos, **plan(order)),
        num_workers=num_workers,
    )
    found = list(batches)
    assert len(batches) == 24
    for (images, labels), (more, others) in zip(
        found, expected(photos, order, "inception_tv:size=6"), strict=True
    ):
        assert torch.equal(images, more)
        assert torch.equal(labels, others)


def test_transforms_may_return_anything(photos: SampleIndex) -> None:
    def as_floats(image: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(image / 255) + rng.random()

    dataset = IndexedDataset(photos, seed=3, transform=as_floats)
    assert len(dataset) == 45
    image, label = dataset[(2, 7)]
    assert image.dtype == torch.float64
    assert label == photos.samples[7]["label"]
    assert torch.equal(image, dataset[(2, 7)][0])
    assert not torch.equal(image, dataset[(3, 7)][0])


@pytest.mark.layouts
@pytest.mark.parametrize(("order", "num_workers"), [("global", 0), ("lanes:lanes=2,shards=1", 2)])
def test_webdataset_pipeline_gets_the_same_batches(
    photos: SampleIndex, order: str, num_workers: int
) -> None:
    pipeline = webdataset.DataPipeline(
        ScheduledShards(photos, **plan(order)),
        webdataset.decode("rgb8"),
        webdataset.to_tuple("png", "cls"),
        webdataset.batched(4),
    )
    batches = webdataset.WebLoader(pipeline, batch_size=None, num_workers=num_workers)
    found = list(batches)
    for (images, labels), (more, others) in zip(
        found, expected(photos, order, "none"), strict=True
    ):
        assert np.array_equal(np.asarray(images), more.numpy())
        assert np.asarray(labels).tolist() == others.tolist()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_an_epoch_has_the_samples_that_webdataset_finds(photos: SampleIndex) -> None:
    shards = [str(path) for path in sorted(photos.directory.glob("*.tar"))]
    plain = Counter(
        (sample["__key__"], sample["png"], sample["cls"])
        for sample in webdataset.WebDataset(shards, shardshuffle=False)
    )
    gc.collect()
    settings = plan("window", batch_size=9, num_steps=5) | {"positions": [range(9)]}
    ours = list(ScheduledShards(photos, **settings))
    assert Counter((sample["__key__"], sample["png"], sample["cls"]) for sample in ours) == plain
    assert {Path(sample["__url__"]) for sample in ours} == {Path(shard) for shard in shards}
    assert {sample["__epoch__"] for sample in ours} == {0}
    assert sorted(sample["__sample_id__"] for sample in ours) == list(range(45))


def test_text_and_bad_settings_are_named(photos: SampleIndex, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed: -1 is not in"):
        IndexedDataset(photos, seed=-1)
    texts = make_texts(tmp_path / "texts", 5)
    with pytest.raises(UserError, match=r"texts: holds text; `MicroBatchLoader` loads it"):
        IndexedDataset(texts, seed=0)
    for adapter in (MiniBatchSampler, ScheduledShards):
        with pytest.raises(UserError, match=r"first_step -1"):
            adapter(photos, **plan("global", first_step=-1))
        with pytest.raises(UserError, match=r"batch_size: 46 does not fit the 45 samples"):
            adapter(photos, **plan("global", batch_size=46))


@pytest.mark.parametrize("adapter", [MiniBatchSampler, ScheduledShards])
def test_they_go_on_where_a_loader_stopped(photos: SampleIndex, adapter: Any) -> None:
    def content(one: Any) -> list[Any]:
        return [item["__key__"] if isinstance(item, dict) else item for item in one]

    assert MiniBatchSampler(photos, **plan("global")).steps_per_epoch == 5
    whole = adapter(photos, **plan("lanes:lanes=2,shards=1"))
    items_per_step = len(content(whole)) // 12
    loader = MicroBatchLoader(
        photos, transform=transform_preset("none"), num_workers=0, **plan("lanes:lanes=2,shards=1")
    )
    states = whole.state_dict(steps_done=7), loader.state_dict(steps_done=7)
    assert states[0] == states[1]
    for state in states:
        part = adapter(photos, **plan("lanes:lanes=2,shards=1"))
        part.load_state_dict(state)
        assert content(part) == content(whole)[7 * items_per_step :]
    other = adapter(photos, **plan("global"))
    with pytest.raises(UserError, match="order lanes:lanes=2,shards=1 before and global now"):
        other.load_state_dict(states[0])


def test_remote_shards_are_named_as_their_source_names_them(photos: SampleIndex) -> None:
    class Renamed(LocalFolder):
        def where(self, name: str) -> str:
            return f"far/{name}"

    source = Renamed(photos.directory)
    first = next(iter(ScheduledShards(photos, source=source, **plan("global"))))
    assert first["__url__"].startswith("far/part-")
    dataset = IndexedDataset(photos, seed=3, source=source)
    assert dataset[(0, 5)][1] == IndexedDataset(photos, seed=3)[(0, 5)][1]
