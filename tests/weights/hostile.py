"""Files that exhaust time or memory of a careless reader, made on the fly."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from jaxdepth.weights import name_tables, resnet

from . import fcrn_files, torch_files

START, END = b"\x80\x02", b"."
DEEP = 200_000
MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
MANY = b"](" + b"N" * 100_000 + b"e"  # a list of 100,000 entries
ALIASED = b")" + b"2\x86" * 60  # a tuple of the previous tuple twice, 60 times
TENSOR_KIND = b"ctorch\nFloatStorage\n"


def repeated(name: bytes, argument: bytes, count: int = 50_000) -> bytes:
    """Calls with the same argument, stored once, whose results are kept."""
    again = b"c" + name + b"h\x00\x85R"
    return b"(" + argument + b"q\x00" + again * count + b"l"


def rebuilt_arrays() -> bytes:
    """Arrays of NumPy that each copy the same megabyte."""
    new = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    kind = b"cnumpy\ndtype\nU\x02f4\x85R"
    state = b"(K\x01J\x00\x00\x04\x00\x85" + kind + b"\x89" + MEGABYTE + b"tq\x00"
    return b"(" + state + (new + b"h\x00b") * 20_000 + b"l"


def storage(key: bytes, count: bytes = b"K\x01") -> bytes:
    """A persistent id of a storage."""
    return b"(U\x07storage" + TENSOR_KIND + key + b"U\x03cpu" + count + b"tQ"


def tensor(key: bytes = b"U\x010", size: bytes = b"K\x01\x85") -> bytes:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"(" + storage(key) + b"K\x00" + size + b"K\x01\x85\x89}tR"


HUGE_NUMBER = b"\x8b" + struct.pack("<i", 5 << 20) + b"\x01" * (5 << 20)
PICKLES = {
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "deep tuples": b")" + b"\x85" * DEEP,
    "deep dicts": b"}U\x01a" * (DEEP // 2) + b"N" + b"s" * (DEEP // 2),
    "deep tuple as key": b"})" + b"\x85" * DEEP + b"Ns",
    "aliased tuple as key": b"}" + ALIASED + b"Ns",
    "aliased torch.Size as key": b"})q\x00"
    + b"0ctorch\nSize\nh\x00h\x00\x86\x85Rq\x00" * 60
    + b"Ns",
    "aliased tuple in a set": b"\x8f(" + ALIASED + b"\x90",
    "nested storage name": tensor(key=ALIASED),
    "nested list as storage name": tensor(key=b"]" * 500 + b"a" * 499),
    "huge number as size": tensor(size=HUGE_NUMBER + b"\x85"),
    "many operations": b"N0" * 3_000_000 + b"N",
    "memo bomb": b"Nr\xff\xff\xff\x7f",
    "bytes of 1 TB": b"\x8e" + struct.pack("<Q", 1 << 40),
    "text of 1 TB": b"\x8d" + struct.pack("<Q", 1 << 40),
    "frame of 1 TB": b"\x95" + struct.pack("<Q", 1 << 40),
    "bytearray of 1 TB": b"\x96" + struct.pack("<Q", 1 << 40),
    "repeated sizes": repeated(b"torch\nSize\n", MANY),
    "repeated texts": repeated(b"_codecs\nencode\n", MEGABYTE),
    "repeated dicts": repeated(
        b"collections\nOrderedDict\n", b"](" + b"NN\x86" * 50_000 + b"e"
    ),
    "repeated arrays": rebuilt_arrays(),
}


def zipped(path: Path, content: bytes, *, storages=None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        for key, data in (storages or {"0": bytes(4)}).items():
            archive.writestr(f"x/data/{key}", data)
    return path


def legacy(path: Path, content: bytes) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    path.write_bytes(b"".join(map(torch_files.dumps, head)) + content)
    return path


def state_dict_of_views(shapes: dict, count: int = 1, stride: int = 0) -> bytes:
    """A state dict whose tensors share one storage."""
    tree = {
        name: torch_files.Call(
            torch_files.Named("torch._utils", "_rebuild_tensor_v2"),
            torch_files.Stored(
                (
                    "storage",
                    torch_files.Named("torch", "FloatStorage"),
                    "0",
                    "cpu",
                    count,
                )
            ),
            0,
            shape,
            (0,) * len(shape) if not stride else (0, 0, shape[-1], 1),
            False,
            {},
        )
        for name, shape in shapes.items()
    }
    return torch_files.dumps(tree)


def resnet_of_views(**changed) -> bytes:
    """A ResNet-50 in a file of some kilobytes: every tensor is one expanded number."""
    shapes = {}
    ours = resnet.shapes()
    for entry in name_tables.resnet() + name_tables.classifier():
        shapes[entry.foreign] = name_tables._foreign_shape(entry, ours[entry.path])
    return state_dict_of_views(shapes | changed)


def wrappers() -> bytes:
    """State dicts in state dicts, each under every usual name."""
    content: dict = {}
    for _ in range(60):
        content = dict.fromkeys(resnet._WRAPPERS, content)
    return pickle.dumps(content, 2)


def shared_mapping() -> bytes:
    """Thousands of names of one mapping with thousands of entries."""
    content = {str(n): None for n in range(100_000)}
    return pickle.dumps({f"m{n}": content for n in range(50_000)}, 2)


def claiming(path: Path, size: int) -> Path:
    """An archive with a member that claims `size` bytes in its directory."""
    zipped(path, resnet_of_views())
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def compressed(path: Path) -> Path:
    """An archive that unpacks to a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", resnet_of_views())
        with archive.open("x/data/0", "w") as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    return path


def many_members(path: Path) -> Path:
    """An archive with 400,000 members in its directory, by repetition of one entry."""
    zipped(path, resnet_of_views())
    content = path.read_bytes()
    end, first = content.rindex(b"PK\x05\x06"), content.index(b"PK\x01\x02")
    entry = content[content.rindex(b"PK\x01\x02") : end] * 400_000
    tail = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 65534, 65534, len(entry), first, 0
    )
    path.write_bytes(content[:first] + entry + tail)
    return path


def torch_archives(folder: Path) -> dict[str, Path]:
    big = {f"a{n}": (1, 1, 512, 512) for n in range(10_000)}
    contents = {
        "10,000 tensors on a storage": state_dict_of_views(big, 512 * 512, stride=1),
        "tensors of exabytes": state_dict_of_views({"a": (1 << 30,) * 2 + (7, 7)}),
        "a classifier of terabytes": resnet_of_views(**{
            "fc.weight": (1 << 30, 2048), "fc.bias": (1 << 30,)
        }),
        "wrappers in wrappers": wrappers(),
        "a mapping of many names": shared_mapping(),
    }  # fmt: skip
    storages = {"0": bytes(1 << 20)}
    found = {
        name: zipped(folder / f"t{n}.pth", content, storages=storages)
        for n, (name, content) in enumerate(contents.items())
    }
    found["a member of 4 GB"] = claiming(folder / "claim4.pth", 0xFFFFFFF0)
    found["a member that ends early"] = claiming(folder / "claim5.pth", 5)
    found["an archive of 1 GB"] = compressed(folder / "compressed.pth")
    found["400,000 members"] = many_members(folder / "members.pth")
    return found


def safetensors_files(folder: Path) -> dict[str, Path]:
    def write(name: str, header: bytes, *, claimed: int | None = None) -> Path:
        size = len(header) if claimed is None else claimed
        path = folder / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", size) + header + bytes(8))
        return path

    def entry(shape: list[int], end: int) -> bytes:
        return json.dumps(
            {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
        ).encode()

    many = ",".join(
        f'"a{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        for n in range(500_000)
    )
    sparse = write("sparse", entry([1 << 33], 1 << 35))
    os.truncate(sparse, (1 << 35) + sparse.stat().st_size)
    return {
        "header of 90 MB": write("claim", b"{", claimed=90_000_000),
        "header of 1 TB": write("claim1", b"{}", claimed=1 << 40),
        "500,000 tensors": write("many", b"{" + many.encode() + b"}"),
        "tensor beyond the file": write("beyond", entry([1 << 30], 1 << 32)),
        "shape that overflows": write("overflow", entry([1 << 62, 16], 8)),
        "file of 34 GB": sparse,
        "nested header": write("nested", b'{"a":' * 100_000),
    }


def npy_files(folder: Path) -> dict[str, Path]:
    layers = {f"m{n}": 0 for n in range(20_000)}
    inner = {str(n): None for n in range(20_000)}
    boxed = np.empty((), object)
    boxed[()] = dict.fromkeys(layers, inner)
    shared = fcrn_files.write_npy(folder / "shared.npy", pickle.dumps(boxed, 2))
    large = fcrn_files.write_npy(folder / "header.npy", b"")
    large.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{")
    shape = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (1 << 60,)}
    np.lib.format.write_array_header_1_0(shape, header)
    (folder / "shape.npy").write_bytes(shape.getvalue())
    return {
        "20,000 layers of one dictionary": shared,
        "npy header of 4 GB": large,
        "npy of exabytes": folder / "shape.npy",
    }


def special_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "fifo")
    os.mkfifo(folder / "ckpt.index")
    os.symlink("/dev/zero", folder / "link")
    return {
        "FIFO": folder / "fifo",
        "link to a device": folder / "link",
        "device": Path("/dev/zero"),
    }


def write_all(folder: Path) -> list[tuple[str, str, Path]]:
    """Write the files. Returns: (name, command, path) of each."""
    cases = []
    for n, (name, content) in enumerate(PICKLES.items()):
        data = START + content + END
        cases += [
            (f"zip: {name}", "resnet", zipped(folder / f"p{n}.pth", data)),
            (f"legacy: {name}", "resnet", legacy(folder / f"p{n}.pt", data)),
            (
                f"npy: {name}",
                "fcrn",
                fcrn_files.write_npy(folder / f"p{n}.npy", data),
            ),
        ]
    resnets = torch_archives(folder) | safetensors_files(folder)
    cases += [(name, "resnet", path) for name, path in resnets.items()]
    cases += [(name, "fcrn", path) for name, path in npy_files(folder).items()]
    for name, path in special_files(folder).items():
        cases += [(name, command, path) for command in ("resnet", "fcrn", "reverse")]
    cases.append(("FIFO as index", "fcrn", folder / "ckpt"))
    return cases
