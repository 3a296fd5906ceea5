"""Random damage to files."""

import numpy as np


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with a few bytes changed, inserted or removed, or truncated."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        index = int(rng.integers(len(data)))
        kind = rng.integers(8)
        if kind == 0:
            del data[index : index + int(rng.integers(1, 9))]
        elif kind == 1:
            data[index:index] = rng.bytes(3)
        elif kind == 2 and len(data) > 40:
            del data[-int(rng.integers(1, 40)) :]
        else:
            data[index] = rng.integers(256)
    return bytes(data)
