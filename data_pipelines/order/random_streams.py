"""Random streams that belong to a sample, not to the process that happens to load it."""

import numpy as np

from data_pipelines.order.mixing import checked_seed, derive_key


def augmentation_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """Returns the random stream for augmenting one sample in one epoch.

    A pure function of its arguments: every call starts the same stream from its beginning, whatever
    was drawn before and wherever it is drawn.

    Raises:
        UserError: The seed is not in [0, 2**63).
    """
    words = (checked_seed(seed), epoch, sample_id)
    key = np.array([derive_key("augment0", *words), derive_key("augment1", *words)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
