/** Two models draw the same with the same seeds, and people choose; choices stay in the page. */

import { dataUrl, inSeconds, modelName } from "./describe.js";
import { bar, button, element } from "./elements.js";
import { randomSeed } from "./state.js";

const MOST_PAIRS = 4;

/** Mounts the comparison of two of the service's models. */
export function mountVersus(state, root, api) {
  const body = element("div");
  root.setAttribute("aria-labelledby", "versus-title");
  root.append(
    element(
      "header",
      { class: "head" },
      element("h2", { id: "versus-title" }, "Champion against candidate"),
    ),
    body,
  );
  state.subscribe(["info"], () => {
    if (!state.info) return;
    const models = distinct(state.info.models);
    body.replaceChildren(...(models.length < 2 ? alone(models) : contest(state, models, api)));
  });
}

/** Models without those that are another one under a second name. */
const distinct = (models) =>
  models.filter(
    ({ id }, i) => i === models.findIndex((other) => other.id.manifest === id.manifest),
  );

function alone(models) {
  const [model] = models;
  return [
    element(
      "p",
      {},
      model ? `There is one model here, ${modelName(model.id)}.` : "There is no model here yet.",
    ),
    element(
      "p",
      { class: "soft" },
      "Train another with ",
      element("code", {}, "ediffi run"),
      " or ",
      element("code", {}, "ediffi retrain"),
      ". A finished ensemble becomes the candidate, and is compared here with the champion until " +
        "it is champion itself.",
    ),
  ];
}

function contest(state, models, api) {
  const named = (alias, not) =>
    models.find((model) => model.aliases.includes(alias) && model !== not) ??
    models.find((model) => model !== not);
  const champion = named("champion");
  const selects = [champion, named("candidate", champion)].map((chosen) => select(models, chosen));
  const count = element("input", {
    type: "number",
    min: 1,
    max: MOST_PAIRS,
    value: 2,
    required: true,
  });
  const blind = element("input", { type: "checkbox", checked: true });
  const go = button("Draw pairs", () => (abort ? abort.abort() : run()), { class: "primary" });
  const status = element("p", { class: "soft", role: "status" });
  const trouble = element("p", { class: "alert", role: "alert", hidden: true });
  const pairs = element("ol", { class: "pairs", role: "list" });
  const tally = createTally();
  let abort = null; // AbortController of the pairs at work

  function fail(message) {
    trouble.textContent = message;
    trouble.hidden = false;
  }

  async function run() {
    trouble.hidden = true;
    const request = { ...state.request(), n: 1, attention: false, previews: true };
    const both = selects.map(({ value }) => models.find(({ name }) => name === value));
    if (both[0] === both[1]) return fail("Both models are the same; choose another one.");
    if (!request.prompt.trim()) return fail("There is no prompt; write one above.");
    if (!count.reportValidity()) return;
    const first = state.settings.seedLocked ? request.seed : randomSeed();
    abort = new AbortController();
    go.textContent = "Stop";
    pairs.replaceChildren();
    try {
      for (let i = 0; i < count.valueAsNumber; i++) {
        status.textContent = `Pair ${i + 1} of ${count.value} is being drawn.`;
        const isSwapped = blind.checked && Math.random() < 0.5;
        const pair = createPair(isSwapped ? both.toReversed() : both, i + 1, blind.checked);
        pairs.append(pair.item);
        const draw = (model) =>
          api.sample({ ...request, seed: first + i, model: model.name }, abort.signal);
        await pair.fill(draw, (sides, winner) => tally.add(sides, winner));
      }
      status.textContent = "Choose the better picture of each pair.";
    } catch (error) {
      pairs.querySelector(".unfinished").remove();
      status.textContent = "Stopped.";
      if (error.name !== "AbortError") fail(error.message);
    } finally {
      abort = null;
      go.textContent = "Draw pairs";
    }
  }

  return [
    element(
      "p",
      { class: "soft" },
      "Both models draw the prompt, the paint and the settings above with the same seeds. Your " +
        "choices are sent nowhere.",
    ),
    element(
      "div",
      { class: "fields" },
      field("One model", selects[0]),
      field("Another model", selects[1]),
      field("Pairs", count),
      element("label", { class: "blind" }, blind, "Hide which is which until I choose"),
      go,
    ),
    trouble,
    status,
    pairs,
    tally.box,
  ];
}

const field = (label, control) =>
  element("label", { class: "field" }, element("span", {}, label), control);

const labelOf = ({ id, aliases }) =>
  [aliases.join(" and "), modelName(id)].filter(Boolean).join(": ");

const select = (models, chosen) =>
  element(
    "select",
    {},
    ...models.map((model) =>
      element("option", { value: model.name, selected: model === chosen }, labelOf(model)),
    ),
  );

/**
 * Two pictures of one seed, with a choice between them.
 *
 * @param {object[]} sides the models, left and right.
 * @param {boolean} isBlind whether the models' names are hidden until the choice.
 * @returns its element, and what fills it: `fill(draw, onchoose)` with `draw(model)` → events and
 *   `onchoose(sides, winner)`, whose winner is null for neither.
 */
function createPair(sides, number, isBlind) {
  const places = ["Left", "Right"].map((side, i) => {
    const image = element("img", {
      alt: `${side} picture of pair ${number}`,
      class: "pixels large waiting",
    });
    const label = element("strong", {}, isBlind ? side : labelOf(sides[i]));
    const progress = element("span", { class: "soft small" });
    const box = element("figure", {}, image, element("figcaption", {}, label, progress));
    return { image, label, progress, box };
  });
  const choices = element("div", {
    class: "choices",
    role: "group",
    "aria-label": `Your choice for pair ${number}`,
  });
  const item = element(
    "li",
    { class: "unfinished" },
    element("h3", {}, `Pair ${number}`),
    element("div", { class: "two" }, ...places.map(({ box }) => box)),
    choices,
  );

  function reveal(times) {
    places.forEach(({ label, progress }, i) => {
      label.textContent = labelOf(sides[i]);
      progress.textContent = inSeconds(times[i]);
    });
  }

  async function fill(draw, onchoose) {
    const times = [];
    for (const [i, model] of sides.entries()) times.push(await show(draw(model), places[i]));
    item.classList.remove("unfinished");
    if (!isBlind) reveal(times);
    const outcomes = { "Left is better": 0, "No difference": null, "Right is better": 1 };
    const buttons = Object.entries(outcomes).map(([text, side]) =>
      button(text, (event) => {
        for (const each of buttons) each.disabled = true;
        event.target.setAttribute("aria-pressed", "true");
        reveal(times);
        if (side !== null) places[side].box.classList.add("winner");
        onchoose(sides, side === null ? null : sides[side]);
      }),
    );
    choices.append(...buttons);
  }

  return { item, fill };
}

/** Shows a picture while it is drawn; resolves to the seconds that it took. */
async function show(events, { image, progress }) {
  for await (const event of events) {
    if (event.type === "queued") progress.textContent = `${event.ahead} ahead`;
    if (event.type === "step") {
      progress.textContent = `step ${event.step + 1} of ${event.steps}`;
      if (event.preview) image.src = dataUrl(event.preview);
    }
    if (event.type === "finished") {
      image.src = dataUrl(event.png);
      image.classList.remove("waiting");
      progress.textContent = "";
      return event.seconds;
    }
  }
  throw new Error("The service sent no picture; draw again.");
}

/** Counts choices by pair of models. */
function createTally() {
  const box = element("div", { class: "tally" });
  const counts = new Map(); // both models' manifests → label → number of choices

  function render() {
    box.replaceChildren();
    if (!counts.size) return;
    const reset = button("Count anew", () => {
      counts.clear();
      render();
    });
    box.append(element("h3", {}, "Your choices"), ...[...counts.values()].map(list), reset);
  }

  function list(numbers) {
    const all = [...numbers.values()].reduce((sum, number) => sum + number);
    return element(
      "ul",
      { class: "bars", role: "list" },
      ...[...numbers].map(([label, number]) => bar(label, number / all, `${number} of ${all}`)),
    );
  }

  function add(sides, winner) {
    const models = sides.toSorted((a, b) => (a.id.manifest < b.id.manifest ? -1 : 1));
    const key = models.map(({ id }) => id.manifest).join();
    if (!counts.has(key)) {
      counts.set(key, new Map([...models.map(labelOf), "No difference"].map((name) => [name, 0])));
    }
    const numbers = counts.get(key);
    const label = winner ? labelOf(winner) : "No difference";
    numbers.set(label, numbers.get(label) + 1);
    render();
  }

  return { box, add };
}
