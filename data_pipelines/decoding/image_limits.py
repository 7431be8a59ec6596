"""How large an image may be."""

# 400 MB as RGB. The largest image of ImageNet has 32 million pixels.
MAX_PIXELS = 1 << 27


def check_pixels(*, height: int, width: int) -> None:
    """Refuses an image whose header announces more pixels than any photograph has.

    A file of some kilobytes can announce billions ("decompression bomb"); a worker that believed it
    would take the memory of the machine.

    Raises:
        ValueError: There are none or too many pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the header announces {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"the header announces {height} x {width} pixels, but images have at most {MAX_PIXELS}"
        )
