"""`digits`: the 1797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation
from data_pipelines.preparation.recipe import DatasetRecipe, EncodedSample, SplitSource

_NUM_TRAIN = 1437
_MAX_STORED_GREY = 16


def _splits(seed: int) -> dict[str, SplitSource]:
    grey_values, labels = load_digits(return_X_y=True)
    # 17 grey values become 17 bytes spread over 0 … 255, each its own.
    images = np.rint(grey_values * 255 / _MAX_STORED_GREY).astype(np.uint8).reshape(-1, 8, 8, 1)
    shuffled = Permutation(len(images), key=derive_key("digits", seed))(np.arange(len(images)))
    ids = {"train": shuffled[:_NUM_TRAIN], "val": shuffled[_NUM_TRAIN:]}
    return {
        split: SplitSource(num_samples=len(chosen), samples=_encoded(images, labels, chosen))
        for split, chosen in ids.items()
    }


def _encoded(
    images: NDArray[np.uint8], labels: NDArray[np.int64], chosen: NDArray[np.int64]
) -> Iterator[EncodedSample]:
    for number in chosen.tolist():
        stream = io.BytesIO()
        # The oldest version of the format, which no later NumPy writes differently.
        np.lib.format.write_array(stream, images[number], version=(1, 0), allow_pickle=False)
        yield EncodedSample(
            key=f"{number:06d}",
            columns={"npy": stream.getvalue(), "cls": str(labels[number]).encode("ascii")},
        )


DIGITS = DatasetRecipe(
    name="digits",
    description="1797 handwritten digits, grey, 8x8 pixels, from scikit-learn",
    num_classes=10,
    samples_per_shard=512,
    splits=_splits,
)
