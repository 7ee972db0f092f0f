/** Two pictures of the session under a slider, and the settings in which they differ. */

import { differences } from "./describe.js";
import { button, element, picture, pixelsOf, shown } from "./elements.js";

/** Factor by which the difference view enlarges differences. */
const GAIN = 4;

/** Mounts the comparison; the gallery chooses its pictures. */
export function mountCompare(state, root) {
  const intro = element(
    "p",
    { class: "soft" },
    "Choose Compare at two pictures of the gallery to see them here under a slider.",
  );
  const body = element("div");
  root.setAttribute("aria-labelledby", "compare-title");
  root.append(
    element("header", { class: "head" }, element("h2", { id: "compare-title" }, "Comparison")),
    intro,
    body,
  );
  let pair = []; // ids, left and right

  function show(ids) {
    const [left, right] = ids.map((id) => state.results.find((result) => result.id === id));
    const isThere = Boolean(left && right);
    pair = isThere ? ids : [];
    intro.hidden = isThere;
    body.replaceChildren(
      ...(isThere ? [views(left, right), table(left, right, state.info?.models ?? [])] : []),
    );
    body.className = isThere ? "beside" : "";
  }

  function views(left, right) {
    const under = slider(left, right);
    const difference = differenceView(left, right);
    difference.hidden = true;
    const choice = (label, isDifference) =>
      element(
        "label",
        { class: "chip" },
        element("input", {
          type: "radio",
          name: "compare-view",
          checked: !isDifference,
          onchange: () => {
            under.hidden = isDifference;
            difference.hidden = !isDifference;
          },
        }),
        label,
      );
    return element(
      "div",
      {},
      element(
        "fieldset",
        { class: "chips" },
        element("legend", { class: "visually-hidden" }, "View"),
        choice("Slider", false),
        choice(`Difference × ${GAIN}`, true),
        button("Swap sides", () => show(pair.toReversed())),
      ),
      under,
      difference,
    );
  }

  document.addEventListener("studio:compare", (event) => {
    show(event.detail);
    root.scrollIntoView();
    root.querySelector("[role=slider]").focus({ preventScroll: true });
  });
  state.subscribe(["results"], () => {
    if (!pair.every((id) => state.results.some((result) => result.id === id))) show(pair);
  });
}

/** The left picture on the right one, up to a line that the pointer and keys move. */
function slider(left, right) {
  const line = element("div", {
    class: "line",
    role: "slider",
    tabIndex: 0,
    "aria-label": "Share of the left picture",
    "aria-valuemin": 0,
    "aria-valuemax": 100,
  });
  const about = ({ request, seed }) => `${request.prompt}, seed ${seed}`;
  const box = element(
    "div",
    { class: "compared" },
    picture(right.png, `Right: ${about(right)}`),
    picture(left.png, `Left: ${about(left)}`, { class: "pixels over" }),
    line,
  );
  let at;

  function move(percent) {
    at = Math.max(0, Math.min(100, Math.round(percent)));
    box.style.setProperty("--at", `${at}%`);
    line.setAttribute("aria-valuenow", at);
    line.setAttribute("aria-valuetext", `${at} % left picture, ${100 - at} % right picture`);
  }

  function follow(event) {
    const { left: start, width } = box.getBoundingClientRect();
    move((100 * (event.clientX - start)) / width);
  }

  box.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    box.setPointerCapture(event.pointerId);
    line.focus({ preventScroll: true });
    follow(event);
  });
  box.addEventListener("pointermove", (event) => {
    if (box.hasPointerCapture(event.pointerId)) follow(event);
  });
  line.addEventListener("keydown", (event) => {
    const to = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - 10,
      PageUp: at + 10,
      Home: 0,
      End: 100,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
  move(50);
  return element(
    "div",
    {},
    box,
    element(
      "p",
      { class: "sides soft small", "aria-hidden": true },
      element("span", {}, "left"),
      element("span", {}, "right"),
    ),
  );
}

/** The absolute difference of two pictures, enlarged, and in words how large it is. */
function differenceView(left, right) {
  const canvas = element("canvas", { class: "pixels large", role: "img" });
  const words = element("p", { class: "soft" });
  const draw = async () => {
    const sides = (await Promise.all([left, right].map(({ png }) => pixelsOf(png)))).map(
      ({ width }) => width,
    );
    const side = Math.max(...sides);
    const [a, b] = await Promise.all([left, right].map(({ png }) => pixelsOf(png, side)));
    const [pixels, size] = difference(a, b);
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.setAttribute("aria-label", `Difference × ${GAIN}`);
    words.textContent = size;
  };
  draw();
  return element("div", {}, canvas, words);
}

/** |a − b| × GAIN of two ImageData, clamped to 255, and in words how large |a − b| is. */
function difference(a, b) {
  const pixels = new ImageData(a.width, a.height);
  let [largest, sum, unequal] = [0, 0, 0];
  for (let i = 0; i < a.data.length; i += 4) {
    const by = [0, 1, 2].map((channel) => Math.abs(a.data[i + channel] - b.data[i + channel]));
    pixels.data.set([...by.map((value) => GAIN * value), 255], i);
    sum += by[0] + by[1] + by[2];
    largest = Math.max(largest, ...by);
    unequal += Math.max(...by) > 0;
  }
  if (!unequal) return [pixels, "The pictures are equal in every pixel."];
  const count = a.data.length / 4;
  const share = ((100 * unequal) / count).toFixed(1);
  const mean = (sum / (3 * count)).toFixed(1);
  return [
    pixels,
    `${share} % of the pixels differ. Of 255 levels, the mean difference is ${mean} and the ` +
      `largest is ${largest}.`,
  ];
}

/** A table of the settings that differ. */
function table(left, right, models) {
  const rows = differences(left, right, models);
  if (!rows.length) return element("p", {}, "All settings of the pictures are equal.");
  const cell = (setting) => element("td", {}, ...(setting ? shown(setting) : ["–"]));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("caption", {}, "Settings that differ"),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, "Setting"),
          element("th", { scope: "col" }, "Left"),
          element("th", { scope: "col" }, "Right"),
        ),
      ),
      element(
        "tbody",
        {},
        ...rows.map(([name, a, b]) =>
          element("tr", {}, element("th", { scope: "row" }, name), cell(a), cell(b)),
        ),
      ),
    ),
  );
}
