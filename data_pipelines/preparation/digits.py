"""`digits`: the 1797 handwritten digits of 8x8 pixels that come with scikit-learn."""

from pathlib import Path

import numpy as np

from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation
from data_pipelines.preparation.array_images import ArrayImages
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
)
from data_pipelines.progress import Progress

_NUM_TRAIN = 1437
_MAX_STORED_GREY = 16
_SAMPLES_PER_SHARD = 512


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    from sklearn.datasets import load_digits  # takes a second, which other data sets do not need

    grey_values, labels = load_digits(return_X_y=True)
    # 17 grey values become 17 bytes spread over 0 … 255, each its own.
    images = np.rint(grey_values * 255 / _MAX_STORED_GREY).astype(np.uint8).reshape(-1, 8, 8, 1)
    permutation = Permutation(len(images), key=derive_key("digits", options.seed))
    bounds = {"train": (0, _NUM_TRAIN), "val": (_NUM_TRAIN, len(images))}
    return OpenedDataset(
        splits={
            split: SplitSource(
                samples=ArrayImages(images, labels),
                permutation=permutation,
                start=start,
                stop=stop,
                samples_per_shard=_SAMPLES_PER_SHARD,
            )
            for split, (start, stop) in bounds.items()
        },
        num_classes=10,
    )


DIGITS = DatasetRecipe(
    name="digits",
    description="1797 handwritten digits, grey, 8x8 pixels, from scikit-learn",
    open=_open,
)
