"use strict";
// Pictures: a range input moves the border; radio buttons choose the layer on its left.
for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input");
  const layers = compare.parentElement.querySelectorAll("fieldset input");
  const labels = { truth: "ground truth" };
  let left = labels.truth;
  const show = () => {
    compare.style.setProperty("--cut", range.value);
    range.setAttribute("aria-valuetext", `${range.value} % ${left}`);
  };
  range.addEventListener("input", show);
  for (const radio of layers) {
    radio.addEventListener("change", () => {
      left = labels[radio.value] ?? radio.value;
      for (const image of compare.querySelectorAll(".over")) {
        image.hidden = image.dataset.layer !== radio.value;
      }
      compare.querySelector(".left").textContent = left;
      const name = range.getAttribute("aria-label").replace(/: [\w ]+ left of the border.*$/, "");
      range.setAttribute("aria-label", `${name}: ${left} left of the border, prediction right of it`);
      show();
    });
  }
  show(); // a browser may keep the slider's position over a reload
}

// Point clouds: each pixel of a small depth map is a square; the nearest one is visible.
const START = { yaw: 0.35, pitch: 0.15, zoom: 1 };
const ANGLE = Math.PI / 36; // per key press

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Uint16Array.from({ length: bytes.length / 2 }, (_, k) => bytes[2 * k] | (bytes[2 * k + 1] << 8));
}

function coloursOf(image, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

// x right, y down, z forward in metres; x = (column - cx) z / fx.
function pointsOf(cloud, kind, image) {
  const depth = decode(cloud[kind]);
  const colours = coloursOf(image, cloud.width, cloud.height);
  const points = [];
  const distances = [];
  depth.forEach((code, k) => {
    if (code === 0) return;
    const z = code / cloud.unit;
    const x = (((k % cloud.width) - cloud.cx) * z) / cloud.fx;
    const y = ((Math.floor(k / cloud.width) - cloud.cy) * z) / cloud.fy;
    points.push([x, y, z, colours[4 * k], colours[4 * k + 1], colours[4 * k + 2]]);
    distances.push(z);
  });
  distances.sort((a, b) => a - b);
  return { points, middle: distances[distances.length >> 1] ?? 1 };
}

function draw(canvas, cloud, { points, middle }, { yaw, pitch, zoom }) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  pixels.fill(0xff1c1816);
  const nearest = new Float32Array(width * height).fill(Infinity);
  const scale = (0.65 * zoom * width) / cloud.width;
  const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
  for (const [x, y, z, r, g, b] of points) {
    const ahead = z - middle;
    const rotated = cy * ahead - sy * x;
    const right = cy * x + sy * ahead;
    const down = cp * y + sp * rotated;
    const distance = cp * rotated - sp * y + middle;
    if (distance < 0.1) continue;
    const u = width / 2 + (right * cloud.fx * scale) / distance;
    const v = height / 2 + (down * cloud.fy * scale) / distance;
    const size = Math.min(12, Math.ceil((1.15 * scale * z) / distance));
    const [left, top] = [Math.round(u - size / 2), Math.round(v - size / 2)];
    if (left + size < 0 || top + size < 0 || left >= width || top >= height) continue;
    const colour = 0xff000000 | (b << 16) | (g << 8) | r;
    for (let i = Math.max(0, top); i < Math.min(height, top + size); i++) {
      for (let j = Math.max(0, left); j < Math.min(width, left + size); j++) {
        const index = i * width + j;
        if (distance < nearest[index]) {
          nearest[index] = distance;
          pixels[index] = colour;
        }
      }
    }
  }
  context.putImageData(picture, 0, 0);
}

for (const box of document.querySelectorAll(".cloud")) {
  const clouds = JSON.parse(document.getElementById(box.dataset.clouds).textContent);
  const canvas = box.querySelector("canvas");
  const which = box.querySelector(".which");
  const depth = box.querySelector(".depth");
  const status = box.querySelector("output");
  let view = { ...START };
  let cloud, geometry;
  let scheduled = false;

  const degrees = (angle) => Math.round((angle * 180) / Math.PI);
  const paint = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw(canvas, cloud, geometry, view);
      status.textContent = `Rotated ${degrees(view.yaw)}° sideways and ${degrees(view.pitch)}° up, ` +
        `${Math.round(100 * view.zoom)} %, ${geometry.points.length} points`;
    });
  };
  const open = async () => {
    cloud = clouds[Number(which.value)];
    const image = document.getElementById(which.selectedOptions[0].dataset.image);
    await image.decode();
    geometry = pointsOf(cloud, depth.value, image);
    canvas.style.aspectRatio = `${cloud.width} / ${cloud.height}`;
    canvas.height = Math.round((canvas.width * cloud.height) / cloud.width);
    paint();
  };
  const rotate = (yaw, pitch) => {
    view.yaw += yaw;
    view.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, view.pitch + pitch));
  };
  const zoom = (factor) => {
    view.zoom = Math.max(0.3, Math.min(6, view.zoom * factor));
  };
  const keys = {
    ArrowLeft: () => rotate(-ANGLE, 0),
    ArrowRight: () => rotate(ANGLE, 0),
    ArrowUp: () => rotate(0, ANGLE),
    ArrowDown: () => rotate(0, -ANGLE),
    "+": () => zoom(1.2),
    "=": () => zoom(1.2),
    "-": () => zoom(1 / 1.2),
    0: () => { view = { ...START }; },
  };
  const press = (key) => {
    if (!(key in keys) || !geometry) return false;
    keys[key]();
    paint();
    return true;
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (press(event.key)) event.preventDefault();
  });
  for (const button of box.querySelectorAll("button")) {
    button.addEventListener("click", () => press(button.dataset.key));
  }
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId) || !geometry) return;
    rotate(event.movementX / 150, event.pointerType === "mouse" ? event.movementY / 150 : 0);
    paint();
  });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // otherwise the page scrolls
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    paint();
  }, { passive: false });
  which.addEventListener("change", open);
  depth.addEventListener("change", open);
  open();
}
