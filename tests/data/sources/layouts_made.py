"""Small folders that are laid out as the publishers of RGB-D data sets ship them.

Each function writes a folder of one data set and returns it. Frame k shows depth from
1 + k / 10 m in the first column to 1.63 m more in the last one, and none in the first
row.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
FRAMES = 4


def metres(k: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """The depth of frame k, 0 = missing."""
    rows, columns = size
    depth = 1 + k / 10 + 1.63 * np.arange(columns) / (columns - 1)
    depth = np.tile(depth, (rows, 1))
    depth[0] = 0
    return depth


def rgb(k: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    rng = np.random.default_rng(k)
    y, x = np.mgrid[: size[0], : size[1]] // 8
    return rng.integers(0, 255, (40, 40, 3), np.uint8)[y % 40, x % 40]


def image(path: Path, k: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb(k, size)).save(path)


def depth(
    path: Path,
    k: int,
    scale: float = 1000,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    code: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.round(metres(k, size) * scale).astype(np.uint16)
    Image.fromarray(code(values)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def matrix(*rows: tuple[float, ...]) -> str:
    return "\n".join(" ".join(f"{value:.6f}" for value in row) for row in rows) + "\n"


def rotated(values: np.ndarray) -> np.ndarray:
    return (values << 3) | (values >> 13)


def filled(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[0] = values[1]
    return values


def sunrgbd(root: Path) -> Path:
    kinect = "kv2/kinect2data/00000{}_2014-05-26_14-54-02_2605_rgbf00000{}-resize"
    xtion = "xtion/sun3ddata/mit/lab/000000{}-00000006703{}"
    names = [(kinect, "{}", "{}"), (xtion, "1-000000067032", "1-000000068000")]
    for k in range(FRAMES):
        folder, colour, measured = (part.format(k, k) for part in names[k % 2])
        frame = root / folder
        image(frame / f"image/000000{colour}.jpg", k)
        depth(frame / f"depth/000000{measured}.png", k, code=rotated)
        depth(
            frame / f"depth_bfx/000000{measured}.png", k,
            code=lambda values: rotated(filled(values)),
        )  # fmt: skip
        image(frame / f"fullres/000000{k}.jpg", k, (60, 80))
        depth(frame / f"fullres/000000{k}.png", k, size=(60, 80), code=rotated)
        text(frame / "intrinsics.txt", f"{50 + k} 0 31.0 0 {51 + k} 23.0 0 0 1")
        text(frame / "extrinsics/20150118235401.txt", matrix((1, 0, 0, 0)))
        text(frame / "scene.txt", "office")
        text(frame / "annotation2Dfinal/index.json", "{}")
        (frame / "seg.mat").write_bytes(b"MATLAB")
    return root


def scannet(root: Path) -> Path:
    scene = root / "scene0000_00"
    for k in range(FRAMES):
        image(scene / f"color/{k}.jpg", k, (96, 128))
        depth(scene / f"depth/{k}.png", k)
        identity = [tuple(float(i == j) for j in range(4)) for i in range(4)]
        text(scene / f"pose/{k}.txt", matrix(*identity))
    for name, fx in (("intrinsic_color", 116.0), ("intrinsic_depth", 57.0)):
        rows = (fx, 0, 64.5, 0), (0, fx + 1, 47.5, 0), (0, 0, 1, 0), (0, 0, 0, 1)
        text(scene / f"intrinsic/{name}.txt", matrix(*rows))
        text(scene / f"intrinsic/ext{name[3:]}.txt", matrix((1, 0, 0, 0)))
    return root


def scannet_info(root: Path) -> Path:
    """A scene whose camera is in the file of the scene only."""
    scene = scannet(root) / "scene0000_00"
    for file in (scene / "intrinsic").iterdir():
        file.unlink()
    content = (
        "axisAlignment = 0.945519 0.325568 0.000000 -5.384390\ncolorHeight = 192\n"
        "colorWidth = 256\ndepthHeight = 96\ndepthWidth = 128\nfx_color = 232.0\n"
        "fx_depth = 571.6\nfy_color = 234.0\nfy_depth = 571.6\nmx_color = 129.5\n"
        "mx_depth = 319.5\nmy_color = 95.5\nmy_depth = 239.5\nsceneType = Apartment\n"
    )
    text(scene / "scene0000_00.txt", content)
    return root


def seven_scenes(root: Path) -> Path:
    def with_codes(values):
        return np.where(values == 0, np.uint16(65535), values)

    for k in range(FRAMES):
        stem = root / f"chess/seq-0{1 + k % 2}/frame-00000{k}"
        image(stem.with_name(f"{stem.name}.color.png"), k)
        depth(stem.with_name(f"{stem.name}.depth.png"), k, code=with_codes)
        text(stem.with_name(f"{stem.name}.pose.txt"), matrix((1.0, 0, 0, 0)))
    text(root / "chess/TrainSplit.txt", "sequence1\r\n")
    text(root / "chess/TestSplit.txt", "sequence2\nsequence3\n")
    return root


def arkitscenes(root: Path) -> Path:
    for k in range(FRAMES):
        part, number = ("Validation", 9) if k == 3 else ("Training", k // 3)
        video = root / part / f"4106902{number}"
        stem = f"{video.name}_30{k}.244"
        image(video / f"lowres_wide/{stem}.png", k)
        depth(video / f"lowres_depth/{stem}.png", k)
        confidence = np.full((HEIGHT, WIDTH), 2, np.uint8)
        confidence[:, :8], confidence[:, 8:16] = 0, 1
        if k == 1:  # no pixel is certain
            confidence = np.minimum(confidence, 1)
        (video / "confidence").mkdir(exist_ok=True)
        Image.fromarray(confidence).save(video / f"confidence/{stem}.png")
        time = f"{video.name}_30{k}.24{4 + k % 2}"  # some are 1 ms late
        camera = f"64 48 {53 + k} {54 + k} 31.5 23.5"
        text(video / f"lowres_wide_intrinsics/{time}.pincam", camera)
        text(video / "lowres_wide.traj", "301.2 0 0 0 0 0 0\n")
    text(root / "metadata.csv", "video_id,visit_id,fold\n41069020,1,Training\n")
    return root


def arkit_upsampling(root: Path) -> Path:
    for k in range(FRAMES):
        video = root / "Training/41069021"
        stem = f"41069021_30{k}.244"
        image(video / f"color/{stem}.png", k, (96, 128))
        depth(video / f"highres_depth/{stem}.png", k, size=(96, 128))
        depth(video / f"lowres_depth/{stem}.png", k + 5)
        depth(video / f"confidence/{stem}.png", 0, scale=0)
    return root


def stray(root: Path) -> Path:
    for k in range(FRAMES):
        depth(root / f"depth/00000{k}.png", k)
        confidence = np.full((HEIGHT, WIDTH), 2, np.uint8)
        confidence[:, :8], confidence[:, 8:16] = 0, 1
        (root / "confidence").mkdir(exist_ok=True)
        Image.fromarray(confidence).save(root / f"confidence/00000{k}.png")
    text(
        root / "camera_matrix.csv", "1500.0,0.0,960.5\n0.0,1501.0,720.5\n0.0,0.0,1.0\n"
    )
    text(root / "odometry.csv", "timestamp, frame, x, y, z\n1.0, 000000, 0, 0, 0\n")
    text(root / "imu.csv", "timestamp, a_x\n1.0, 0.1\n")
    (root / "rgb.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    return root


def stray_extracted(root: Path) -> Path:
    stray(root)
    for k in range(FRAMES):
        image(root / f"rgb/00000{k}.jpg", k, (192, 256))
    return root


def replica(root: Path) -> Path:
    for k in range(FRAMES):
        scene = root / f"room{k % 2}"
        image(scene / f"results/frame00000{k}.jpg", k)
        depth(scene / f"results/depth00000{k}.png", k, scale=6553.5)
        text(scene / "traj.txt", matrix(tuple(map(float, range(16)))))
    camera = {"w": 1280, "h": 960, "fx": 600.0, "fy": 610.0, "cx": 639.5, "cy": 479.5}
    text(root / "cam_params.json", json.dumps({"camera": camera | {"scale": 6553.5}}))
    return root


def matterport(root: Path) -> Path:
    house = root / "17DRP5sb8fy"
    conf = "dataset matterport\nn_images 4\n\n"
    for k in range(FRAMES):
        uuid = f"{zlib.crc32(bytes([k])):08x}5e3b054e3fad7e1e"
        name = f"{uuid}_{{}}{k % 3}_{k}"
        colour, measured = f"{name.format('i')}.jpg", f"{name.format('d')}.png"
        image(house / "undistorted_color_images" / colour, k)
        depth(house / "undistorted_depth_images" / measured, k, scale=4000)
        conf += f"intrinsics_matrix {54 + k} 0 32.5  0 {55 + k} 20.5  0 0 1\n"
        conf += f"scan {measured} {colour} {' '.join(['0'] * 16)}\n"
        depth(house / f"undistorted_normal_images/{name.format('d')}_nx.png", k)
    text(house / "undistorted_camera_parameters/17DRP5sb8fy.conf", conf)
    return root


def redwood(root: Path) -> Path:
    """A scan of Open3D's samples, with the file of its camera."""
    for k in range(FRAMES):
        image(root / f"color/0000{k}.jpg", k)
        depth(root / f"depth/0000{k}.png", k)
    values = [52.5, 0, 0, 0, 52.6, 0, 31.5, 23.5, 1]  # column-major
    content = {"width": 64, "height": 48, "intrinsic_matrix": values}
    text(root / "camera_primesense.json", json.dumps(content))
    return root


def redwood_rooms(root: Path) -> Path:
    """Augmented ICL-NUIM, whose camera is published on its page."""
    for k in range(FRAMES):
        image(root / f"livingroom1-color/0000{k}.jpg", k)
        depth(root / f"livingroom1-depth-clean/0000{k}.png", k)
        depth(root / f"livingroom1-depth-simulated/0000{k}.png", k + 5)
    return root


def tum(root: Path) -> Path:
    folder = root / "rgbd_dataset_freiburg1_desk"
    lists = {"rgb": "# color images\n", "depth": "# depth maps\n"}
    for k in range(FRAMES):
        for kind, shift in (("rgb", 0.0), ("depth", 0.004)):
            time = f"{1305031453 + k + shift:.6f}"
            lists[kind] += f"{time} {kind}/{time}.png\n"
            if kind == "rgb":
                image(folder / f"rgb/{time}.png", k)
            else:
                depth(folder / f"depth/{time}.png", k, scale=5000)
    for kind, content in lists.items():
        text(folder / f"{kind}.txt", content)
    text(folder / "groundtruth.txt", "# ground truth\n1305031453.1 0 0 0 0 0 0 1\n")
    text(folder / "accelerometer.txt", "1305031453.1 0 9.8 0\n")
    return folder


LAYOUTS = {
    function.__name__: function
    for function in (
        sunrgbd, scannet, scannet_info, seven_scenes, arkitscenes, arkit_upsampling,
        stray_extracted, replica, matterport, redwood, redwood_rooms, tum,
    )
}  # fmt: skip
