/** Elements that the panels are made of. */

import { loadImage } from "./masks.js";

/**
 * An element.
 *
 * @param {string} name its tag.
 * @param {object} [properties] its properties; `aria-…`, `data-…`, `role` and `class` are
 *   attributes, and `on…` are listeners.
 * @param {...(Node|string|null)} inside what it holds; `null` is left out.
 */
export function element(name, properties = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (/^(aria-|data-|(role|class)$)/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...inside.filter((part) => part !== null));
  return made;
}

/** A button that calls `onclick`. */
export const button = (label, onclick, properties = {}) =>
  element("button", { type: "button", onclick, ...properties }, label);

/** A picture of the model, its pixels as squares. */
export const picture = (src, alt, properties = {}) =>
  element("img", { src, alt, class: "pixels", draggable: false, ...properties });

/** What one of `settingsOf` says, as text and small pictures. */
export const shown = ({ text, pictures }) => [
  text,
  ...pictures.map(({ url, alt }) => picture(url, alt, { class: "pixels reference" })),
];

/** A word or model, and its share as a bar with a text. */
export function bar(label, share, text, properties = {}) {
  const length = element("span", { class: "bar" }, text);
  length.style.setProperty("--share", share);
  return element("li", properties, element("span", {}, label), length);
}

/** ImageData of a picture, in its own size or enlarged to `side` by repeating pixels. */
export async function pixelsOf(url, side = null) {
  const image = await loadImage(url);
  const canvas = element("canvas", {
    width: side ?? image.naturalWidth,
    height: side ?? image.naturalHeight,
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
