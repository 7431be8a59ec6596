"""The size of a WebP image, from the header of its file."""


def webp_size(payload: bytes) -> tuple[int, int]:
    """Returns (height, width) of a WebP image.

    Read here, because libwebp's decoder of animations, which Pillow uses for all files, takes the
    memory of the whole image before it can be asked for its size. The layout is that of RFC 9649:
    the first chunk is lossy data, lossless data, or the extended header.

    Raises:
        ValueError: It is none of these.
    """
    chunk, header = payload[12:16], payload[20:30]
    if len(header) == 10:
        if chunk == b"VP8X":
            return _number(header[7:10]) + 1, _number(header[4:7]) + 1
        if chunk == b"VP8L" and header[0] == 0x2F:
            bits = _number(header[1:5])
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        if chunk == b"VP8 " and header[3:6] == b"\x9d\x01\x2a":
            return _number(header[8:10]) & 0x3FFF, _number(header[6:8]) & 0x3FFF
    raise ValueError(f"damaged or cut short WebP: the first chunk is {payload[12:30]!r}")


def _number(little_endian: bytes) -> int:
    return int.from_bytes(little_endian, "little")
