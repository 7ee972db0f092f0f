/** Drawing: the request, the picture as it forms, and which expert is at work. */

import { chosenModel } from "./settings.js";
import { randomId, randomSeed } from "./state.js";

/** Hues of the experts of the highest and the lowest noise, as on the page of lineage. */
const FIRST_HUE = 18;
const LAST_HUE = 262;

/** EDM's noise levels, the default, which the service leaves out of a stage's settings. */
const SIGMA_MIN = 0.002;
const SIGMA_MAX = 80;

const find = (id) => document.getElementById(id);
const png = (base64) => `data:image/png;base64,${base64}`;

/** Mount the button, the picture and the bars of experts. */
export function mountDraw(state, api) {
  let leaving = null; // AbortController of the request at work

  find("draw").addEventListener("click", draw);
  find("stop").addEventListener("click", () => leaving?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    draw();
  });
  state.subscribe(["drawing", "prompt", "info"], showActions);
  state.subscribe(["drawing", "results"], showPictures);
  state.subscribe(["info", "settings"], showBars);
  state.subscribe(["drawing"], showNow);

  async function draw() {
    if (state.drawing || !state.info || !state.prompt.trim()) return;
    if (!state.settings.seedLocked) state.setSettings({ seed: randomSeed() });
    const request = state.request();
    leaving = new AbortController();
    state.set({ trouble: "", drawing: { request, ahead: null, pictures: {}, at: null } });
    say("Drawing.");
    const { top, bottom } = find("pictures").getBoundingClientRect();
    if (top > innerHeight / 2 || bottom < innerHeight / 2) {
      find("picture").scrollIntoView({ block: "start" });
    }
    const ids = {};
    try {
      for await (const event of api.sample(request, leaving.signal)) follow(event, request, ids);
      say(request.n > 1 ? "The pictures are finished." : "The picture is finished.");
    } catch (error) {
      if (error.name === "AbortError") say("Stopped.");
      else state.set({ trouble: whatToDo(error) });
    } finally {
      leaving = null;
      state.set({ drawing: null });
    }
  }

  /** Take in one event of the service. */
  function follow(event, request, ids) {
    const { drawing } = state;
    const set = (changes) => state.set({ drawing: { ...drawing, ...changes } });
    const mine = drawing.pictures[event.picture] ?? {};
    const setPicture = (changes, more = {}) =>
      set({
        ahead: null,
        pictures: { ...drawing.pictures, [event.picture]: { ...mine, ...changes } },
        ...more,
      });

    if (event.type === "queued") {
      set({ ahead: event.ahead });
      if (event.ahead) say(`${event.ahead} pictures are before yours.`);
    } else if (event.type === "started") {
      setPicture({ model: event.model });
    } else if (event.type === "step") {
      if (drawing.at?.stage !== event.stage) say(`Stage ${event.stage}.`);
      setPicture({ preview: event.preview ?? mine.preview }, { at: event });
    } else if (event.type === "attention") {
      const { type, picture, ...attention } = event;
      if (ids[picture]) state.updateResult(ids[picture], { attention });
      else setPicture({ attention });
    } else if (event.type === "finished") {
      const id = (ids[event.picture] = randomId());
      setPicture({ preview: event.png, id });
      state.addResult({
        id,
        png: png(event.png),
        request,
        seed: event.seed,
        number: event.number,
        model: event.model,
        seconds: event.seconds,
        attention: mine.attention ?? null,
        finishedAt: Date.now(),
      });
    }
  }

  /** Words for who does not see the picture. */
  function say(text) {
    find("spoken").textContent = text;
  }

  function showActions() {
    const { drawing } = state;
    find("draw").hidden = Boolean(drawing);
    find("stop").hidden = !drawing;
    find("draw").disabled = !state.info || !state.prompt.trim();
    find("progress").textContent = drawing ? progress(drawing) : "";
  }

  function showPictures() {
    const { drawing } = state;
    const shown = drawing
      ? Array.from({ length: drawing.request.n }, (_, i) => ({
          src: drawing.pictures[i]?.preview && png(drawing.pictures[i].preview),
          alt: `Picture ${i + 1} as it forms`,
          text: "waiting",
        }))
      : latest(state.results).map((result) => ({
          src: result.png,
          alt: `Drawn from: ${result.request.prompt}`,
        }));
    if (!shown.length) shown.push({ text: "The picture appears here while it is drawn." });
    const box = find("pictures");
    box.style.setProperty("--columns", Math.ceil(Math.sqrt(shown.length)));
    while (box.children.length > shown.length) box.lastChild.remove();
    shown.forEach((tile, i) => {
      const place = box.children[i] ?? box.appendChild(document.createElement("div"));
      place.className = "tile";
      if (!tile.src) return place.replaceChildren(tile.text);
      const image = place.querySelector("img") ?? document.createElement("img");
      // The same element shows picture after picture; a new one each time would flicker.
      Object.assign(image, { src: tile.src, alt: tile.alt });
      if (!image.parentNode) place.replaceChildren(image);
    });
  }

  /** A bar a stage: its experts from high noise on the left to low on the right. */
  function showBars() {
    const stages = chosenModel(state)?.stages ?? [];
    const last = stages.findIndex((stage) => stage.name === state.settings.stage);
    const run = last < 0 ? stages : stages.slice(0, last + 1);
    find("experts").replaceChildren(...run.map(bar));
    showNow();
  }

  function showNow() {
    const at = state.drawing?.at;
    for (const stage of find("experts").children) {
      const isHere = at?.stage === stage.dataset.stage;
      for (const segment of stage.querySelectorAll(".segment")) {
        segment.classList.toggle("works", isHere && segment.dataset.expert === at.expert);
      }
      const now = stage.querySelector(".now");
      now.hidden = !isHere;
      if (isHere) now.style.setProperty("--now", `${position(stage.dataset, at.sigma)}%`);
      stage.querySelector(".what").textContent = isHere
        ? `σ ${short(at.sigma)}, ${at.expert} at work`
        : "";
    }
  }
}

/** What went wrong, and what to do about it. */
function whatToDo(error) {
  if (error.status !== 429 && error.status !== 503) return error.message;
  const wait = error.retryAfter ? `in ${error.retryAfter} s` : "in a moment";
  return `${error.message} Draw again ${wait}.`;
}

function progress({ ahead, at, request, pictures }) {
  if (ahead) return `${ahead} picture${ahead === 1 ? "" : "s"} before yours`;
  if (!at) return "waiting for the model";
  const which = request.n > 1 ? `picture ${at.picture + 1} of ${request.n} · ` : "";
  const done = Object.values(pictures).filter((picture) => picture.id).length;
  if (done === request.n) return "finishing";
  return `${which}${at.stage} · step ${at.step + 1} of ${at.steps} · ${at.expert}`;
}

/** Pictures of the last request. */
function latest(results) {
  const last = results.at(-1);
  if (!last) return [];
  const request = JSON.stringify(last.request);
  return results
    .slice(-last.request.n)
    .filter((result) => JSON.stringify(result.request) === request);
}

function short(sigma) {
  return String(Number(sigma.toPrecision(3)));
}

/** Place of σ on a stage's axis in percent from the left, high noise first. */
function position({ low, high }, sigma) {
  const share = Math.log(high / sigma) / Math.log(high / low);
  return 100 * Math.min(Math.max(share, 0), 1);
}

function bar({ name, resolution, experts, sampling }) {
  const axis = { low: sampling.sigma_min ?? SIGMA_MIN, high: sampling.sigma_max ?? SIGMA_MAX };
  const stage = document.createElement("div");
  Object.assign(stage.dataset, axis, { stage: name });
  const line = (className, ...texts) => {
    const made = document.createElement("div");
    made.className = className;
    for (const text of texts) made.appendChild(document.createElement("span")).textContent = text;
    return made;
  };
  const title = line("axis-name", "", "");
  const label = document.createElement("b");
  label.textContent = name;
  title.firstChild.append(label, ` ${resolution} × ${resolution}`);
  title.lastChild.className = "what soft";
  const noise = line("noise");
  noise.setAttribute("role", "img");
  noise.setAttribute(
    "aria-label",
    `Experts of stage ${name} from high noise to low: ${experts.map((e) => e.name).join(", ")}`,
  );
  const step = (LAST_HUE - FIRST_HUE) / Math.max(experts.length - 1, 1);
  experts.forEach((expert, i) => {
    const [low, high] = expert.sigma;
    const segment = noise.appendChild(document.createElement("div"));
    segment.className = "segment";
    segment.dataset.expert = expert.name;
    segment.textContent = expert.name;
    segment.title = `${expert.name}: σ from ${short(low)} to ${high >= 1e9 ? "∞" : short(high)}`;
    segment.style.setProperty("--hue", FIRST_HUE + i * step);
    segment.style.flexGrow = position(axis, Math.max(low, 1e-9)) - position(axis, high);
    segment.style.flexBasis = 0;
  });
  const now = noise.appendChild(document.createElement("i"));
  now.className = "now";
  now.hidden = true;
  const ends = line("ends", `σ ${short(axis.high)}, noise`, `σ ${short(axis.low)}, picture`);
  stage.append(title, noise, ends);
  return stage;
}
