"""Converted weights for tests."""

from collections.abc import Mapping

import numpy as np

from jaxdepth.weights import files


def weights(arrays: Mapping[str, np.ndarray], **fields: str) -> files.Weights:
    """Weights for layout torchvision, by default of an encoder."""
    defaults = {
        "init": "imagenet",
        "origin": "a test",
        "sha256": "0",
        "licence": "none",
    }
    return files.Weights.of_layout(arrays, "torchvision", **(defaults | fields))
