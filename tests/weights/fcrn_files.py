"""The published network: files as its authors wrote them, and a forward pass."""

import struct
from pathlib import Path

import numpy as np

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}
WIDTH = {2: 64, 3: 128, 4: 256, 5: 512}
UPS = {"2x": (1024, 512), "4x": (512, 256), "8x": (256, 128), "16x": (128, 64)}
# Kernel and padding (top, bottom, left, right) of the four small convolutions.
SMALL = {
    "A": ((3, 3), (1, 1, 1, 1)),
    "B": ((2, 3), (1, 0, 1, 1)),
    "C": ((3, 2), (1, 1, 1, 0)),
    "D": ((2, 2), (1, 0, 1, 0)),
}


def random_dictionary(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Random weights with the names and shapes of the published dictionary."""
    rng = np.random.default_rng(seed)
    layers: dict[str, dict[str, np.ndarray]] = {}

    def conv(name, kernel, cin, cout, *, bias):
        scale = np.float32(np.sqrt(2 / (kernel[0] * kernel[1] * cin)))
        weights = rng.standard_normal((*kernel, cin, cout), np.float32) * scale
        layers[name] = {"weights": weights}
        if bias:
            layers[name]["biases"] = rng.normal(0, 0.1, cout).astype("f4")

    def norm(name, width, gain=1.0):
        layers[name] = {
            "scale": (gain * rng.uniform(0.5, 1.5, width)).astype("f4"),
            "offset": rng.normal(0, 0.1, width).astype("f4"),
            "mean": rng.normal(0, 0.1, width).astype("f4"),
            "variance": rng.uniform(0.5, 2, width).astype("f4"),
        }

    conv("conv1", (7, 7), 3, 64, bias=True)
    norm("bn_conv1", 64)
    layers["bn_conv1"]["variance"] *= 2e4  # the input is raw colours
    width = 64
    for stage, letters in BLOCKS.items():
        w = WIDTH[stage]
        for letter in letters:
            name = f"{stage}{letter}"
            if letter == "a":
                conv(f"res{name}_branch1", (1, 1), width, 4 * w, bias=False)
                norm(f"bn{name}_branch1", 4 * w)
            for k, kernel, cin, cout in (
                ("2a", (1, 1), width, w),
                ("2b", (3, 3), w, w),
                ("2c", (1, 1), w, 4 * w),
            ):
                conv(f"res{name}_branch{k}", kernel, cin, cout, bias=False)
                norm(f"bn{name}_branch{k}", cout, 0.3 if k == "2c" else 1.0)
            width = 4 * w
    conv("layer1", (1, 1), 2048, 1024, bias=True)
    norm("layer1_BN", 1024)
    for name, (cin, cout) in UPS.items():
        for branch in ("br1", "br2"):
            for letter, (kernel, _) in SMALL.items():
                conv(f"layer{name}_{branch}_Conv{letter}", kernel, cin, cout, bias=True)
            norm(f"layer{name}_{branch}_BN", cout)
        conv(f"layer{name}_Conv", (3, 3), cout, cout, bias=True)
        norm(f"layer{name}_BN", cout)
    conv("ConvPred", (3, 3), 64, 1, bias=True)
    layers["ConvPred"]["biases"] += 1
    return layers


def forward(dictionary, rgb: np.ndarray, *, side: str = "top_left") -> np.ndarray:
    """Depth for raw colours (b, h, w, 3), layer by layer as in the published graph."""
    import torch
    import torch.nn.functional as F

    w = {
        layer: {k: torch.tensor(x) for k, x in arrays.items()}
        for layer, arrays in dictionary.items()
    }

    def conv(x, name, stride=1, pad=None):
        kernel = w[name]["weights"].permute(3, 2, 0, 1)
        size = kernel.shape[-1]
        top, bottom, left, right = pad or (((size - 1) // 2,) * 4)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, kernel, w[name].get("biases"), stride)

    def norm(x, name):
        p = w[name]
        shape = (1, -1, 1, 1)
        scale = p["scale"] / torch.sqrt(p["variance"] + 1e-4)
        return (x - p["mean"].view(shape)) * scale.view(shape) + p["offset"].view(shape)

    def up(x, name):
        parts = {}
        for letter, (_, (top, bottom, left, right)) in SMALL.items():
            pad = (top, bottom, left, right)
            if side == "bottom_right":
                pad = (bottom, top, right, left)
            parts[letter] = conv(x, f"{name}_Conv{letter}", pad=pad)
        b, c, height, width = x.shape[0], parts["A"].shape[1], *x.shape[2:]
        y = torch.empty(b, c, 2 * height, 2 * width)
        y[:, :, 0::2, 0::2], y[:, :, 1::2, 0::2] = parts["A"], parts["B"]
        y[:, :, 0::2, 1::2], y[:, :, 1::2, 1::2] = parts["C"], parts["D"]
        return y

    with torch.no_grad():
        x = torch.tensor(rgb.transpose(0, 3, 1, 2))
        x = F.relu(norm(conv(x, "conv1", 2), "bn_conv1"))
        # TensorFlow's SAME: even sizes are padded at the end only.
        (height, width), inf = x.shape[2:], float("-inf")
        pads = []
        for n in (width, height):
            total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
            pads += [total // 2, total - total // 2]
        x = F.max_pool2d(F.pad(x, pads, value=inf), 3, 2)
        for stage, letters in BLOCKS.items():
            for letter in letters:
                name = f"{stage}{letter}"
                stride = 2 if stage > 2 and letter == "a" else 1
                y = F.relu(
                    norm(conv(x, f"res{name}_branch2a", stride), f"bn{name}_branch2a")
                )
                y = F.relu(norm(conv(y, f"res{name}_branch2b"), f"bn{name}_branch2b"))
                y = norm(conv(y, f"res{name}_branch2c"), f"bn{name}_branch2c")
                if letter == "a":
                    x = norm(conv(x, f"res{name}_branch1", stride), f"bn{name}_branch1")
                x = F.relu(x + y)
        x = norm(conv(x, "layer1"), "layer1_BN")
        for id_ in UPS:
            name = f"layer{id_}"
            y = F.relu(norm(up(x, f"{name}_br1"), f"{name}_br1_BN"))
            y = norm(conv(y, f"{name}_Conv"), f"{name}_BN")
            x = F.relu(y + norm(up(x, f"{name}_br2"), f"{name}_br2_BN"))
        return F.relu(conv(x, "ConvPred"))[:, 0].numpy()


def python2_pickle(obj) -> bytes:
    """A pickle as Python 2 with NumPy 1 writes it: byte strings, old module names."""
    return b"\x80\x02" + _emit(obj) + b"."


def _text(raw: bytes) -> bytes:
    if len(raw) < 256:
        return b"U" + bytes([len(raw)]) + raw
    return b"T" + struct.pack("<i", len(raw)) + raw


def _number(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def _emit(obj) -> bytes:
    if isinstance(obj, str):
        return _text(obj.encode())
    if isinstance(obj, dict):
        items = b"".join(_emit(k) + _emit(v) for k, v in obj.items())
        return b"}(" + items + b"u"
    if isinstance(obj, list):
        return b"](" + b"".join(map(_emit, obj)) + b"e"
    assert isinstance(obj, np.ndarray)
    is_object = obj.dtype == object
    code = b"O8" if is_object else obj.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n(" + _text(code) + _number(0) + _number(1) + b"tR("
    order = b"|" if is_object else b"<"
    flags = _number(63 if is_object else 0)
    dtype += _number(3) + _text(order) + b"NNN" + 2 * _number(-1) + flags + b"tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    start += _number(0) + b"\x85" + _text(b"b") + b"tR("
    shape = b"(" + b"".join(map(_number, obj.shape)) + b"t"
    data = _emit(list(obj.reshape(-1))) if is_object else _text(obj.tobytes())
    return start + _number(1) + shape + dtype + b"\x89" + data + b"tb"


def write_npy(path: Path, payload: bytes) -> Path:
    """Write a .npy file of one pickled object, as np.save does."""
    header = b"{'descr': 'O', 'fortran_order': False, 'shape': (), }"
    header = header.ljust(117) + b"\n"
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload
    )
    return path


def save(path: Path, dictionary) -> Path:
    """Write the published .npy file of a dictionary."""
    boxed = np.empty((), object)
    boxed[()] = dictionary
    return write_npy(path, python2_pickle(boxed))
