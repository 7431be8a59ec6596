"""What a decoded sample is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """A decoded image, uint8 (height, width, channels), and its class number."""

    image: NDArray[np.uint8]
    label: int


class TextSample(NamedTuple):
    """A tokenised text, int32 (rows, length), and its class number.

    What each row is, such as `input_ids`, says the index of the split.
    """

    tokens: NDArray[np.int32]
    label: int


class SampleHeader(NamedTuple):
    """What is known of a sample without decoding it.

    Attributes:
        shape: (height, width, channels) of the image, or (rows, length) of the tokens.
        label: Its class number.
    """

    shape: tuple[int, ...]
    label: int
