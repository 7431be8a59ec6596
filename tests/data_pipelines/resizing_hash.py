"""Prints a hash of resized images; run by a test in a process of its own."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from data_pipelines.transforms import resampling


def hash_of_results(folder: Path) -> str:
    """Returns a hash over the images of a folder, resized by every filter."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        image = np.load(path)
        for resize in (
            resampling.resize_bilinear,
            resampling.resize_bicubic,
            resampling.resize_area,
            resampling.resize_bilinear_antialiased,
            resampling.resize_bicubic_antialiased,
        ):
            digest.update(resize(image, height=96, width=112).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(hash_of_results(Path(sys.argv[1])))
