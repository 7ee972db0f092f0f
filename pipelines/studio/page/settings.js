/** Settings of the picture, and reference pictures of style. */

import { loadImage } from "./masks.js";
import { randomSeed } from "./state.js";

/** Longest side of a reference picture as it is sent; encoders see far less. */
const STYLE_SIDE = 512;

/** Numbers of pictures in the menu, where the service draws more at once. */
const OFFERED = 16;

const find = (id) => document.getElementById(id);

/** The model that a session has chosen, of those that are served. */
export function chosenModel(state) {
  const models = state.info?.models ?? [];
  return models.find((model) => model.name === state.settings.model) ?? models[0];
}

/** A picture file as a PNG data URL of at most {@link STYLE_SIDE}. */
async function toReference(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = await loadImage(url);
    const scale = Math.min(1, STYLE_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
    canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL();
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Mount the settings and the style references. */
export function mountSettings(state) {
  mountFields(state);
  mountStyles(state);
}

function mountFields(state) {
  const shown = {}; // what the fields of numbers show, so that other changes spare what is typed
  const numbers = {
    guidance: (value) => ({ guidance: Number.isFinite(value) ? value : null }),
    steps: (value) => ({ steps: Number.isFinite(value) ? Math.trunc(value) : null }),
    seed: (value) =>
      Number.isSafeInteger(value) && value >= 0 ? { seed: value, seedLocked: true } : {},
  };
  for (const [name, changes] of Object.entries(numbers)) {
    find(name).addEventListener("input", (event) => {
      const made = changes(event.target.valueAsNumber);
      shown[name] = made[name];
      state.setSettings(made);
    });
    find(name).addEventListener("change", (event) => {
      event.target.value = state.settings[name] ?? ""; // as it was understood
    });
  }
  find("negative").addEventListener("input", (event) =>
    state.setSettings({ negative: event.target.value }),
  );
  find("dice").addEventListener("click", () => state.setSettings({ seed: randomSeed() }));
  find("lock").addEventListener("click", () =>
    state.setSettings({ seedLocked: !state.settings.seedLocked }),
  );
  find("n").addEventListener("change", (event) =>
    state.setSettings({ n: Number(event.target.value) }),
  );
  for (const name of ["stage", "model"]) {
    find(name).addEventListener("change", (event) =>
      state.setSettings({ [name]: event.target.value || null }),
    );
  }
  find("attention-on").addEventListener("change", (event) =>
    state.setSettings({ attention: event.target.checked }),
  );

  state.subscribe(["settings", "info"], () => {
    const { settings } = state;
    const model = chosenModel(state);
    const base = model?.stages[0].sampling ?? {};
    const scale = base.guidance?.scale ?? base.guidance;
    for (const name of Object.keys(numbers)) {
      if (shown[name] !== settings[name]) find(name).value = settings[name] ?? "";
      shown[name] = settings[name];
    }
    find("guidance").placeholder = scale ?? "";
    find("steps").placeholder = base.steps ?? "";
    if (find("negative").value !== settings.negative) find("negative").value = settings.negative;
    find("lock").setAttribute("aria-pressed", settings.seedLocked);
    find("lock").textContent = settings.seedLocked ? "Locked" : "Lock";
    const most = state.mostPictures;
    options(
      find("n"),
      Array.from({ length: Math.min(most, OFFERED) }, (_, i) => [String(i + 1), String(i + 1)]),
      String(Math.min(settings.n, most)),
    );
    find("attention-on").checked = settings.attention;
    const stages = model?.stages ?? [];
    options(
      find("stage"),
      stages.map(({ name, resolution }, i) => [
        i === stages.length - 1 ? "" : name,
        `${name} (${resolution} px)`,
      ]),
      settings.stage,
    );
    const models = state.info?.models ?? [];
    options(
      find("model"),
      models.map(({ name, aliases }, i) => [
        i ? name : "",
        aliases.length && !name.includes("@") ? `${name} (${aliases.join(", ")})` : name,
      ]),
      settings.model,
    );
    find("served").textContent = model ? describe(model) : "";
  });
}

function describe({ name, id, stages }) {
  const experts = stages.reduce((sum, stage) => sum + stage.experts.length, 0);
  const version = id.version ? `, version ${id.version}` : "";
  const sizes = stages.map((stage) => `${stage.resolution} × ${stage.resolution}`).join(" → ");
  return `${name}${version} · ${sizes} · ${experts} expert${experts === 1 ? "" : "s"}`;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  select.value = chosen ?? "";
  if (select.selectedIndex < 0) select.value = "";
  select.disabled = pairs.length < 2;
}

function mountStyles(state) {
  const zone = find("style");
  find("style-add").addEventListener("click", () => find("style-file").click());
  find("style-file").addEventListener("change", (event) => {
    add(event.target.files[0]);
    event.target.value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
    });
  }
  zone.addEventListener("drop", (event) => add(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    add(file);
  });
  state.subscribe(["styles"], () =>
    find("styles").replaceChildren(...state.styles.map((_, i) => row(i))),
  );

  async function add(file) {
    if (!file) return;
    try {
      state.addStyle(await toReference(file));
    } catch (error) {
      state.set({ trouble: error.message });
    }
  }

  /** A reference with its weight, which matters beside others only. */
  function row(index) {
    const { image, weight } = state.styles[index];
    const item = document.createElement("li");
    const picture = item.appendChild(document.createElement("img"));
    picture.src = image;
    picture.alt = `Reference of style ${index + 1}`;
    if (state.styles.length > 1) {
      const label = item.appendChild(document.createElement("label"));
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: 0.05, max: 1, step: 0.05, value: weight });
      slider.setAttribute("aria-label", `Weight of reference ${index + 1}`);
      slider.addEventListener("change", () =>
        state.set({
          styles: state.styles.map((style, i) =>
            i === index ? { ...style, weight: Number(slider.value) } : style,
          ),
        }),
      );
      label.append("weight ", slider);
    }
    const gone = item.appendChild(document.createElement("button"));
    Object.assign(gone, { type: "button", className: "quiet", textContent: "Remove" });
    gone.setAttribute("aria-label", `Remove reference ${index + 1}`);
    gone.addEventListener("click", () =>
      state.set({ styles: state.styles.filter((_, i) => i !== index) }),
    );
    return item;
  }
}
