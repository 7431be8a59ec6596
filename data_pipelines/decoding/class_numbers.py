"""Labels."""


def decode_class_number(payload: bytes) -> int:
    """Decodes a class number written in decimal digits.

    Raises:
        ValueError: There is anything else than digits and surrounding white space.
    """
    digits = payload.strip()
    if not digits.isdigit():
        raise ValueError(f"a class number is decimal digits, this is {payload[:40]!r}")
    return int(digits)
