"""Safe access to datasets of untrusted HDF5 files.

An HDF5 file can refer to other files (external links, external storage, virtual
datasets); reading it would then copy their content. A few compressed bytes can expand
to gigabytes. Such datasets are rejected before any of their data is read.
"""

from typing import Any

import h5py
import numpy as np

# Upper bound of the compression ratio of deflate, the strongest common filter; and
# bytes that a dataset may claim in addition, regardless of its stored size.
MOST_SHRUNK, SMALL = 1100, 1 << 24
# Likewise for chunks that were never written, which read as zeros: the labeled set with
# few of its 1449 frames has 1.8 GB of them.
UNWRITTEN = 1 << 31
LARGEST_CHUNK = 1 << 28  # bytes; a chunk is decompressed as a whole


class InvalidDataset(ValueError):
    """A dataset refers to other data, or is larger than its stored bytes (one line)."""


def dataset(group: Any, name: str) -> Any:
    """Return a dataset of a file or group by name; None if there is none.

    Raises: InvalidDataset, see `checked`.
    """
    if not group.id.links.exists(name.encode()):
        return None
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InvalidDataset(f"{name} is a link to other data, which is not followed")
    data = group[name]
    if not isinstance(data, h5py.Dataset):
        raise InvalidDataset(f"{name} is not a dataset")
    return checked(data, name)


def checked(data: Any, name: str) -> Any:
    """Return the dataset if it is self-contained and of plausible size.

    Raises: InvalidDataset for external storage, a virtual dataset, chunks of more than
      256 MiB, and a size that the stored bytes can't decompress to.
    """
    if data.is_virtual or data.external:
        raise InvalidDataset(
            f"{name} takes its data from other files, which are not opened"
        )
    stored, item = data.id.get_storage_size(), data.dtype.itemsize
    claimed = _product(data.shape) * item
    limit = SMALL + MOST_SHRUNK * stored
    if data.chunks is not None and claimed <= UNWRITTEN + limit:
        chunk = _product(data.chunks) * item
        if chunk > LARGEST_CHUNK:
            raise InvalidDataset(
                f"{name} has chunks of {chunk >> 20} MiB: at most "
                f"{LARGEST_CHUNK >> 20} MiB are read"
            )
        claimed = min(claimed, chunk * data.id.get_num_chunks())
    if claimed > limit:
        raise InvalidDataset(
            f"{name} needs {claimed >> 20} MiB, but only {stored} bytes are stored"
        )
    return data


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
