"""Your own data format: a folder of pairs a.png (colours) and a.npz (depth in metres).

jaxdepth run --plugin=examples/own_dataset.py --data=A --split=all --eval_data=B
"""

import numpy as np
from PIL import Image

import jaxdepth
from jaxdepth.data.sources import Frame, FrameInfo


class Pairs:
    """Frames of a folder, see `jaxdepth.data.sources.Source`."""

    format = "pairs"
    OPTIONS = frozenset()  # fields of `ReadOptions` that the format uses

    @staticmethod
    def recognises(path):
        return path.is_dir() and any(path.glob("*.npz"))

    def __init__(self, path, options):
        self.files = sorted(path.glob("*.npz"))
        self.name, self.truths, self.eight_bit = path.name, ("raw",), False
        self.notes = ()
        self.infos = [FrameInfo(file.stem) for file in self.files]

    def frame(self, row):
        rgb = np.asarray(Image.open(self.files[row].with_suffix(".png")).convert("RGB"))
        return Frame(rgb, raw=np.load(self.files[row])["depth"].astype(np.float32))

    def fingerprint(self):
        return {str(file): file.stat().st_mtime for file in self.files}

    def splits(self):
        return {"all": {"train": list(range(len(self.files))), "eval": []}}


jaxdepth.register_source("pairs", Pairs)
