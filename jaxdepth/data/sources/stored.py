"""The frames of a store as a source."""

from typing import Any

import numpy as np

from jaxdepth.data.sources import Frame, FrameInfo
from jaxdepth.data.store.reader import Store


class Stored:
    """The frames of a store, at full size if it was kept, else at training size."""

    format = "store"
    eight_bit = False

    def __init__(self, opened: Store):
        self.store, self.name, self.notes = opened, opened.name, opened.notes
        self.truths, self.unit = opened.depths, float(opened.depth_unit)
        self.infos = [
            FrameInfo(info["name"], info["scene"], info["official_index"])
            for info in opened.manifest["frames"]
        ]

    def frame(self, row: int) -> Frame:
        if self.store.has_full(row):
            full = next(self.store.full_frames([row]))
            return Frame(
                full["rgb"],
                **full["depth"],
                intrinsics=full["camera"],
                unit=self.unit,
            )
        depths = {}
        rgb = np.empty(0)
        for kind in self.truths:
            rgb, codes = self.store.gather([row], depth=kind)
            depths[kind] = self.store.metres(codes[0])
        camera = self.store.camera(row)
        return Frame(rgb[0], **depths, intrinsics=camera, unit=self.unit)

    def fingerprint(self) -> dict[str, Any]:
        return {"path": str(self.store.path.resolve())}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return self.store.splits
