"""Small valid inputs for every reader of files, for `tools/fuzz.py`.

An entry of `READERS` writes an input into an empty folder and reads it. Inputs depend
only on this file, except for names and times that Orbax chooses.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from jaxdepth import config as config_lib
from jaxdepth import images
from jaxdepth.commands import finished_runs
from jaxdepth.config import Config
from jaxdepth.data import dataset
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import files as data_files
from jaxdepth.data.sources import open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.predictor import choose_step
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.training.state import TrainState
from jaxdepth.weights import fcrn, files, resnet, torchwriter
from tests.data.memory import Memory, frame
from tests.weights import example, fcrn_files, torch_files

SIZE = (6, 8)
CONFIG = {"size": "19x38", "arch": "cnn", "augment": "none"}
STEP = {"params": {"conv": {"kernel": np.ones((3, 3, 3, 2), np.float32)}},
        "batch_stats": {"mean": np.arange(64, dtype=np.float32)}}  # fmt: skip
ARRAYS = {
    "conv1.weight": np.arange(2 * 3 * 49, dtype=np.float32).reshape(2, 3, 7, 7),
    "bn1.weight": np.ones(2, np.float16),
    "bn1.num_batches_tracked": np.array(7, np.int64),
}
WEIGHTS = {"params/encoder/conv1/kernel": np.arange(9, dtype=np.float32)}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
      write: writes an input into an empty folder.
      read: reads it, as a command would: name of a part -> its content.
      damage: patterns of the names of the files to damage.
      checksums: patterns of the names of files whose content has checksums.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], dict[str, Any]]
    damage: tuple[str, ...] = ("*",)
    checksums: tuple[str, ...] = ()


def _rgb(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([y * 9 + value, x * 7, y * x % 200], -1).astype(np.uint8)


def _depth(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A depth map in millimetres."""
    return (1000 + 300 * value + np.add.outer(*map(np.arange, size))).astype(np.uint16)


def _image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pairs(root: Path, pairs: list[tuple[str, str]]) -> None:
    for k, (rgb, depth) in enumerate(pairs):
        _image(root / rgb, _rgb(9 * k))
        _image(root / depth, _depth(k))


def read_source(folder: Path) -> dict[str, Any]:
    """Read all frames of a data set, by name. Raises the first error."""
    source = open_source(folder)
    parts: dict[str, Any] = {"splits": source.splits()}
    for row, info in enumerate(source.infos):
        shot = source.frame(row)
        parts[info.name] = {"rgb": shot.rgb, **shot.depths}
    return parts


def write_labeled(folder: Path) -> None:
    """Write a file like MATLAB's v7.3: HDF5 after 512 bytes, axes reversed."""
    depth = np.stack([_depth(k).T for k in range(3)]) / np.float32(1000)
    fields = {"images": np.stack([_rgb(k).T for k in range(3)]), "depths": depth}
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        for name, values in fields.items():
            file[name] = values
        file.create_dataset("rawDepths", data=depth, chunks=True, compression="gzip")
        cell = file.create_dataset("scenes", (1, 3), h5py.ref_dtype)
        for k, scene in enumerate(("kitchen_0003", "office_0004", "office_0004")):
            text = np.frombuffer(scene.encode("utf-16-le"), "<u2")[:, None]
            cell[0, k] = file.create_dataset(f"#refs#/{k}", data=text).ref
    with open(folder / "a.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, HDF5 schema 1.00 .".ljust(124) + b"\0\2IM")


def write_fastdepth(folder: Path) -> None:
    test = splits.official()["test"][0]
    for k, name in enumerate(("train/kitchen_0028b/00006", f"val/official/{test:05d}")):
        path = folder / f"nyudepthv2/{name}.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["rgb"] = _rgb(k).transpose(2, 0, 1)
            file["depth"] = _depth(k) / np.float32(1000)


def write_bts(folder: Path) -> None:
    pairs = [(f"kitchen_0028b/rgb_0000{k}.png", f"kitchen_0028b/sync_depth_0000{k}.png")
             for k in range(2)]  # fmt: skip
    _pairs(folder, pairs)
    lines = "".join(f"/{rgb} /{depth} 518.8579\n" for rgb, depth in pairs)
    (folder / "nyudepthv2_train_files_with_gt.txt").write_text(lines)


def write_densedepth(folder: Path) -> None:
    stems = [f"data/nyu2_train/office_0004_out/{k}" for k in (1, 2)]
    for k, stem in enumerate(stems):
        _image(folder / f"{stem}.jpg", _rgb(k))
        _image(folder / f"{stem}.png", (_depth(k) // 20).astype(np.uint8))
    lines = "".join(f"{stem}.jpg,{stem}.png\n" for stem in stems)
    (folder / "data/nyu2_train.csv").write_text(lines)


def write_tum(folder: Path) -> None:
    pairs = [(f"rgb/{k}.5.png", f"depth/{k}.51.png") for k in (1, 2)]
    _pairs(folder, pairs)
    for column, kind in enumerate(("rgb", "depth")):
        times = [f"{Path(pair[column]).stem} {pair[column]}\n" for pair in pairs]
        (folder / f"{kind}.txt").write_text("# freiburg1\n" + "".join(times))


def write_folder(folder: Path) -> None:
    _pairs(folder, [("rgb/a.png", "depth/a.png"), ("rgb/b.jpg", "depth/b.png")])
    _image(folder / "rgb/c.png", _rgb(5))
    np.save(folder / "depth/c.npy", _depth(5) / np.float32(1000))


def write_hypersim(folder: Path) -> None:
    lines = ["scene_name,camera_name,frame_id,included_in_public_release,"
             "exclude_reason,split_partition_name"]  # fmt: skip
    for k, part in enumerate(("train", "train", "val")):
        images = f"ai_001_00{k}/images/scene_cam_00"
        _image(folder / f"{images}_final_preview/frame.0000.tonemap.jpg", _rgb(k))
        path = folder / f"{images}_geometry_hdf5/frame.0000.depth_meters.hdf5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            metres = (_depth(k) / 1000).astype(np.float16)
            file.create_dataset("dataset", data=metres, compression="gzip")
        lines.append(f"ai_001_00{k},cam_00,0,True,,{part}")
    (folder / "metadata_images_split_scene_v1.csv").write_text("\n".join(lines))


def write_kitti(folder: Path) -> None:
    for k, part in enumerate(("train", "train", "val")):
        drive = f"2011_09_26_drive_000{k}_sync"
        image = f"2011_09_26/{drive}/image_02/data/0.png"
        depth = f"{part}/{drive}/proj_depth/groundtruth/image_02/0.png"
        _pairs(folder, [(image, depth)])
    numbers = "7e2 0 4 0 0 7e2 3 0 0 0 1 0"
    calibration = folder / "2011_09_26/calib_cam_to_cam.txt"
    calibration.write_text(f"corner_dist: 0.1\nP_rect_02: {numbers}\n")


def write_lists(folder: Path) -> None:
    for name, k in (("train", 0), ("train", 1), ("test", 2)):
        pair = (f"rgb/{k}.png", f"depth/{k}.png")
        _pairs(folder, [pair])
        with open(folder / f"{name}.csv", "a") as file:
            file.write(f"{','.join(pair)}\n")


def write_arrays(folder: Path) -> None:
    metres = _depth(3) / np.float32(1000)
    np.save(folder / "a.npy", metres)
    np.savez_compressed(folder / "a.npz", depth=metres)
    (folder / "a.pfm").write_bytes(b"Pf\n8 6\n-1.0\n" + metres[::-1].tobytes())
    (folder / "a.pgm").write_bytes(
        b"P5\n8 6\n65535\n" + _depth(3).astype(">u2").tobytes()
    )
    _image(folder / "a.png", _depth(3))
    _image(folder / "a.tif", metres)


def read_arrays(folder: Path) -> dict[str, Any]:
    """Read depth in all encodings that a folder or a list may have."""
    return {path.suffix: data_files.read_depth(path) for path in folder.iterdir()}


def write_raw(folder: Path) -> None:
    scene = folder / "kitchen_0001"
    scene.mkdir()
    disparity = np.full((480, 640), 800, "<u2").tobytes()
    (scene / "d-1316653580.100000-7.pgm").write_bytes(b"P5 640 480 65535\n" + disparity)
    image = _rgb(3, (480, 640)).tobytes()
    (scene / "r-1316653580.110000-7.ppm").write_bytes(b"P6 640 480 255\n" + image)


def write_tfds(folder: Path) -> None:
    """Write the folder of a version as TFDS does, with frames of `SIZE`."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    root = folder / "nyu_depth_v2/0.0.1"
    root.mkdir(parents=True)
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(*SIZE, 3)),
        "depth": tfds.features.Tensor(shape=SIZE, dtype=np.float16),
    })  # fmt: skip
    features.save_config(str(root))
    parts = []
    for part, count in (("train", 2), ("validation", 1)):
        path = root / f"nyu_depth_v2-{part}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(path)) as file:
            for k in range(count):
                depth = (_depth(k) / 1000).astype(np.float16)
                shot = features.encode_example({"image": _rgb(k), "depth": depth})
                file.write(features.serialize_example(shot))
        parts.append({"name": part, "shardLengths": [str(count)], "numBytes": "900",
                      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-"
                                          "{SHARD_X_OF_Y}"})  # fmt: skip
    info = {"name": "nyu_depth_v2", "version": "0.0.1", "fileFormat": "tfrecord",
            "moduleName": "none", "splits": parts}  # fmt: skip
    (root / "dataset_info.json").write_text(json.dumps(info))


def _config(folder: Path) -> Config:
    return Config.of(data=str(folder), **CONFIG)


def write_store(folder: Path) -> None:
    frames = [frame(k, size=(24, 48)) for k in range(5)]
    split = {"own": {"train": [0, 1, 2], "eval": [3, 4]}}
    source = Memory(frames, split=split)
    folder.rmdir()
    store_writer.write(source, folder, size=_config(folder).frame_size)


def read_store(folder: Path) -> dict[str, Any]:
    """Read what a run reads: training and evaluation frames."""
    data = dataset.open_data(_config(folder))
    rgb, depth = data.train.gather(data.train_rows, depth=data.depth)
    sizes = sorted(data.evaluation.full_sizes(data.eval_rows))
    frames = list(data.frames())
    return {"rgb": rgb, "depth": depth, "frames": frames, "sizes": sizes}


def write_run(folder: Path) -> None:
    saved = {"config": config_lib.to_json(Config.of(**CONFIG)), "data": {"train": 3}}
    (folder / "config.json").write_text(json.dumps(saved, indent=1))
    entry = {"step": 3, "protocol": "eigen", "averaging": "image", "truth": "filled",
             "data": "memory", "split": "own", "size": "19x38",
             "metrics": dict.fromkeys(METRICS, 0.5)}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"evaluations": [entry]}, indent=1))
    lines = [json.dumps({"step": k, "loss": 1 / (k + 1)}) for k in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    (run,) = finished_runs.find([str(folder)]).runs
    return {"config": config_lib.to_json(run.config), "entries": run.evaluations,
            "seed": run.flag("seed"), "records": run.records}  # fmt: skip


def _state(step: int) -> TrainState:
    return TrainState(step=np.int32(step), opt_state=[np.zeros(9, np.float32)], **STEP)


def write_checkpoints(folder: Path) -> None:
    opened = Checkpoints(str(folder))
    opened.save(3, _state(3), rmse=0.5)
    opened.close()


def read_checkpoints(folder: Path) -> dict[str, Any]:
    """Read what `jaxdepth.load` and a resumed run read."""
    with contextlib.closing(Checkpoints(str(folder), read_only=True)) as opened:
        step = choose_step(opened, "own", "best")
        model = opened.restore_model(lambda: _state(0).network, step=step)
        state = opened.restore_state(_state(0))
        assert state is not None
        return {"model": model, "state": vars(state)}


def write_tf(folder: Path) -> None:
    import tensorflow as tf

    arrays = {"conv1/weights": np.ones((7, 7, 3, 4), "f4"), "conv1/biases": np.ones(4)}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "a.ckpt"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(x) for x in arrays.values()],
    )


def write_fcrn(folder: Path) -> None:
    arrays = {"weights": np.zeros((1, 2, 3, 4), "f4"), "biases": np.ones(4, "f4")}
    fcrn_files.save(folder / "a.npy", {"conv1": arrays, "layer1": dict(arrays)})


def write_zip(folder: Path) -> None:
    with open(folder / "a.pth", "wb") as file:
        torchwriter.write(file, ARRAYS)


def write_legacy(folder: Path) -> None:
    def wrap(arrays):
        return {"epoch": 3, "classes": {1, 2}, "state_dict": arrays}

    torch_files.save(folder / "a.pth", ARRAYS, legacy=True, wrap=wrap)


def write_photos(folder: Path) -> None:
    for suffix in ("png", "jpg", "bmp", "gif", "ppm", "tif", "webp"):
        Image.fromarray(_rgb(7, (24, 32))).save(folder / f"a.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_depth(7)).save(folder / "grey.png")
    Image.fromarray(_rgb(7)).save(folder / "turned.jpg", exif=exif)


def read_photos(folder: Path) -> dict[str, Any]:
    return {path.name: images.read(path) for path in images.find([folder])[0]}


def _only(read: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
    """Read the only file of a folder."""
    return lambda folder: dict(read(next(path for path in folder.iterdir())))


def _write_weights(folder: Path) -> None:
    path = folder / "a.safetensors"
    files.write(path, example.weights(WEIGHTS))
    # The library writes metadata in random order.
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(data[:8] + text.ljust(size) + data[8 + size :])


def _write_safetensors(folder: Path) -> None:
    files.write_safetensors(folder / "a.safetensors", ARRAYS, {})


READERS = {
    "nyu_labeled": Reader(write_labeled, lambda f: read_source(f / "a.mat")),
    "fastdepth": Reader(write_fastdepth, read_source),
    "hypersim": Reader(write_hypersim, read_source),
    "kitti": Reader(write_kitti, read_source, checksums=("*.png",)),
    "bts": Reader(write_bts, read_source, checksums=("*.png",)),
    "densedepth": Reader(write_densedepth, read_source, checksums=("*.png",)),
    "tum": Reader(write_tum, read_source, checksums=("*.png",)),
    "folder": Reader(write_folder, read_source, checksums=("*.png",)),
    "lists": Reader(write_lists, read_source, checksums=("*.png",)),
    "arrays": Reader(write_arrays, read_arrays, checksums=("*.png", "*.npz")),
    "nyu_raw": Reader(write_raw, read_source),
    "tfds": Reader(write_tfds, read_source, checksums=("*.tfrecord-*",)),
    "store": Reader(write_store, read_store, ("*.npy",), ("*.npy",)),
    "manifest": Reader(write_store, read_store, ("manifest.json",), ("manifest.json",)),
    "run": Reader(write_run, read_run),
    "checkpoints": Reader(write_checkpoints, read_checkpoints, checksums=("*",)),
    "torch_zip": Reader(write_zip, _only(resnet.read_state_dict), checksums=("*",)),
    "torch_legacy": Reader(write_legacy, _only(resnet.read_state_dict)),
    "weights": Reader(_write_weights, _only(lambda p: vars(files.read(p)))),
    "safetensors": Reader(_write_safetensors, _only(resnet.read_state_dict)),
    "fcrn": Reader(write_fcrn, _only(fcrn.read)),
    "tensorflow": Reader(
        write_tf, lambda folder: dict(fcrn.read(folder / "a.ckpt")), checksums=("*",)
    ),
    "photos": Reader(write_photos, read_photos, checksums=("*.png",)),
}
