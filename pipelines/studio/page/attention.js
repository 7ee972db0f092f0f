/** Where a picture attended to each word of its prompt, by range of σ. */

import { dataUrl, noiseLevel, percent } from "./describe.js";
import { bar, button, element, picture, pixelsOf } from "./elements.js";
import { VIRIDIS } from "./viridis.js";

/** Milliseconds that a range is shown while playing. */
const PACE = 1200;

/** Mounts the attention of the newest picture that has it, or of one that the gallery names. */
export function mountAttention(state, root) {
  const intro = element(
    "p",
    { class: "soft" },
    "Record attention with a picture to see here where it looks at each word.",
  );
  const body = element("div");
  root.setAttribute("aria-labelledby", "attention-title");
  root.append(
    element("header", { class: "head" }, element("h2", { id: "attention-title" }, "Attention")),
    intro,
    body,
  );
  let id = null; // of the result that is shown
  let newest = null; // id of the newest result with attention, when results last changed
  let stop = () => {};

  function show(result) {
    stop();
    id = result?.id ?? null;
    intro.hidden = Boolean(result);
    body.replaceChildren();
    stop = result ? explain(result, body) : () => {};
  }

  document.addEventListener("studio:attention", (event) => {
    show(state.results.find((result) => result.id === event.detail));
    root.scrollIntoView();
    root.querySelector("input").focus({ preventScroll: true });
  });
  state.subscribe(["results"], () => {
    const recorded = state.results.filter(({ attention }) => attention?.words.length);
    const before = newest;
    newest = recorded.at(-1)?.id ?? null;
    const isGone = !recorded.some((result) => result.id === id);
    if (newest !== id && (newest !== before || isGone)) show(recorded.at(-1));
  });
}

/** Fills `body` with the attention of a result; gives a function that ends its playing. */
function explain(result, body) {
  const { words, ranges } = result.attention;
  const { shares: first } = ranges[0];
  let [word, range, timer] = [first.indexOf(Math.max(...first)), 0, null];

  const large = heated(result);
  const sentence = element("p", { class: "sentence", role: "status" });
  const shares = element("ul", { class: "bars", role: "list" });
  const play = button("Play from high σ to low", () => (timer === null ? start() : stop()));
  const opacity = element("input", { type: "range", min: 0, max: 100, value: 65, oninput: fade });
  const multiples = ranges.map((each, i) => {
    const map = heated(result);
    const share = element("span", { class: "bar" });
    const chosen = element(
      "button",
      { type: "button", onclick: () => choose(word, i) },
      map.box,
      element("strong", {}, each.stage),
      element("span", {}, levels(each)),
      element("span", { class: "soft small" }, each.experts.join(", ")),
      share,
    );
    return { map, share, chosen };
  });

  body.append(
    chips(result, word, (i) => choose(i, range)),
    element(
      "div",
      { class: "beside" },
      element(
        "div",
        {},
        large.box,
        element(
          "div",
          { class: "legend small" },
          element("span", {}, "none"),
          ramp(),
          element("span", {}, "most of any word here"),
        ),
        element("label", { class: "opacity" }, "Opacity of the map", opacity),
      ),
      element("div", {}, sentence, shares, play),
    ),
    element(
      "ul",
      { class: "multiples", role: "list", "aria-label": "Ranges, from high σ to low" },
      ...multiples.map(({ chosen }) => element("li", {}, chosen)),
    ),
    table(words, ranges),
  );
  choose(word, range);
  fade();

  function choose(toWord, toRange) {
    [word, range] = [toWord, toRange];
    const { stage, experts, maps, shares: all } = ranges[range];
    const where = `${stage}, ${levels(ranges[range])}`;
    large.draw(maps[word], `Attention to “${words[word]}” in ${where}`);
    const share = `“${words[word]}” has ${percent(all[word])} of the attention to words`;
    sentence.textContent = `${share} in ${where}, by ${experts.join(", ")}.`;
    shares.replaceChildren(
      ...words.map((text, i) =>
        bar(text, all[i], percent(all[i]), { class: i === word ? "chosen" : "" }),
      ),
    );
    multiples.forEach(({ map, share, chosen }, i) => {
      map.draw(ranges[i].maps[word]);
      share.style.setProperty("--share", ranges[i].shares[word]);
      share.textContent = percent(ranges[i].shares[word]);
      chosen.setAttribute("aria-pressed", i === range);
    });
  }

  function fade() {
    body.style.setProperty("--heat", opacity.value / 100);
  }

  function start() {
    play.textContent = "Stop";
    choose(word, 0);
    timer = setInterval(() => {
      if (range + 1 < ranges.length) choose(word, range + 1);
      else stop();
    }, PACE);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play from high σ to low";
  }

  return stop;
}

/** A result's picture under a heat map: its element, and what draws a map with a description. */
function heated({ png }) {
  const canvas = element("canvas", { "aria-hidden": true });
  let wanted = null;

  async function draw(map, about = null) {
    wanted = map;
    const pixels = await pixelsOf(dataUrl(map));
    if (wanted !== map) return; // another was asked for in the meantime
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(VIRIDIS[pixels.data[i]], i);
    [canvas.width, canvas.height] = [pixels.width, pixels.height];
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    if (about === null) return;
    canvas.removeAttribute("aria-hidden");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", about);
  }

  return { box: element("span", { class: "heated" }, picture(png, ""), canvas), draw };
}

/** The prompt with its words as radio buttons. */
function chips({ request, attention: { words, spans } }, chosen, onchoose) {
  const prompt = [...request.prompt]; // code points, as the service counts them
  const between = (from, to) => prompt.slice(from, to).join("");
  return element(
    "fieldset",
    { class: "chips" },
    element("legend", { class: "visually-hidden" }, "Word of the prompt"),
    ...words.flatMap((word, i) => [
      between(spans[i - 1]?.[1] ?? 0, spans[i][0]),
      element(
        "label",
        { class: "chip" },
        element("input", {
          type: "radio",
          name: "attention-word",
          checked: i === chosen,
          onchange: () => onchoose(i),
        }),
        word,
      ),
    ]),
    between(spans.at(-1)[1]),
  );
}

/** The colours of a map, from 0 to its largest value. */
function ramp() {
  const canvas = element("canvas", { width: 256, height: 1, class: "ramp", "aria-hidden": true });
  const pixels = new ImageData(256, 1);
  VIRIDIS.forEach((colour, value) => pixels.data.set([...colour, 255], 4 * value));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const levels = ({ sigma: [high, low] }) => `σ ${noiseLevel(high)} to ${noiseLevel(low)}`;

/** The shares of all words in all ranges. */
function table(words, ranges) {
  return element(
    "details",
    {},
    element("summary", {}, "All shares as a table"),
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        {},
        element("caption", {}, "Share of each word in the attention to all words"),
        element(
          "thead",
          {},
          element(
            "tr",
            {},
            element("th", { scope: "col" }, "Word"),
            ...ranges.map((range) =>
              element("th", { scope: "col" }, `${range.stage}, ${levels(range)}`),
            ),
          ),
        ),
        element(
          "tbody",
          {},
          ...words.map((word, i) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, word),
              ...ranges.map(({ shares }) => element("td", {}, percent(shares[i]))),
            ),
          ),
        ),
      ),
    ),
  );
}
