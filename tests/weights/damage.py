"""What happens to files on their way."""

import numpy as np


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """With a few bytes changed, inserted or taken out, or its end cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data)))
        kind = rng.integers(8)
        if kind == 0:
            del data[place : place + int(rng.integers(1, 9))]
        elif kind == 1:
            data[place:place] = rng.bytes(3)
        elif kind == 2 and len(data) > 40:
            del data[-int(rng.integers(1, 40)) :]
        else:
            data[place] = rng.integers(256)
    return bytes(data)
