/** Painted areas: one number a pixel, 0 for nothing or the slot of a phrase, from 1. */

/** Side of the painted square in pixels; the service makes it smaller. */
export const SIDE = 256;

/** Colour of each slot, from 1: Paul Tol's "muted" scheme, safe for colour-blind eyes. */
export const PALETTE = [
  null, "#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933",
  "#aa4499",
];

const rgb = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));

function canvasOf(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Pixels of a canvas, each coloured by `colour(slot)` → [red, green, blue, alpha]. */
export function toPixels(paint, colour) {
  const pixels = new ImageData(SIDE, SIDE);
  const colours = PALETTE.map((_, slot) => colour(slot));
  paint.forEach((slot, i) => pixels.data.set(colours[slot], 4 * i));
  return pixels;
}

/** [red, green, blue, alpha] of a slot's paint; nothing is transparent. */
export function colourOf(slot) {
  return slot ? [...rgb(PALETTE[slot]), 255] : [0, 0, 0, 0];
}

/** All areas as a PNG on white, as a data URL: {@link fromSketch} reads it back. */
export function toSketch(paint) {
  const colour = (slot) => (slot ? colourOf(slot) : [255, 255, 255, 255]);
  return canvasOf(toPixels(paint, colour)).toDataURL();
}

/** One slot's area as a PNG, white where it is painted and black elsewhere, in base64. */
export function toMask(paint, wanted) {
  const colour = (slot) => (slot === wanted ? [255, 255, 255, 255] : [0, 0, 0, 255]);
  return canvasOf(toPixels(paint, colour)).toDataURL().split(",")[1];
}

/** RGBA bytes of a picture, stretched to the square; pixels are chosen, not mixed. */
async function pixelsOf(source) {
  const image = await loadImage(source);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "white";
  context.fillRect(0, 0, SIDE, SIDE);
  context.drawImage(image, 0, 0, SIDE, SIDE);
  return context.getImageData(0, 0, SIDE, SIDE).data;
}

/** An `<img>` of a URL, decoded. */
export async function loadImage(source) {
  const image = new Image();
  image.src = source;
  try {
    await image.decode();
  } catch {
    throw new Error("This file is no picture that the browser can read; try PNG or JPEG.");
  }
  return image;
}

/**
 * Areas of a picture of colours: each pixel goes to the slot of the nearest colour, or to nothing
 * if white is nearer.
 *
 * @param {string} source URL of the picture.
 * @param {number[]} slots that there are.
 */
export async function fromSketch(source, slots) {
  const data = await pixelsOf(source);
  const colours = [[0, 255, 255, 255], ...slots.map((slot) => [slot, ...rgb(PALETTE[slot])])];
  const paint = new Uint8Array(SIDE * SIDE);
  for (let i = 0; i < paint.length; i++) {
    let nearest = Infinity;
    for (const [slot, r, g, b] of colours) {
      const distance =
        (data[4 * i] - r) ** 2 + (data[4 * i + 1] - g) ** 2 + (data[4 * i + 2] - b) ** 2;
      if (distance < nearest) [nearest, paint[i]] = [distance, slot];
    }
  }
  return paint;
}

/** Areas of masks: `[slot, mask]` pairs, each mask a PNG in base64 as of {@link toMask}. */
export async function fromMasks(masks) {
  const paint = new Uint8Array(SIDE * SIDE);
  for (const [slot, mask] of masks) {
    const data = await pixelsOf(`data:image/png;base64,${mask}`);
    for (let i = 0; i < paint.length; i++) if (data[4 * i] > 127) paint[i] = slot;
  }
  return paint;
}
