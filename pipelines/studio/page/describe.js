/** A result in words: its settings, and how two results differ. */

const NAMES = {
  prompt: "Prompt",
  negative: "Negative prompt",
  then: "Second prompt",
  switch: "Prompts switched",
  switch_sigma: "Prompts switched at σ",
  paint: "Painted",
  style: "Style references",
  image: "Started from",
  sigma: "Started at σ",
  mask: "Redrawn where",
  variation: "Variation of",
  stage: "Last stage",
  guidance: "Guidance",
  steps: "Steps",
};

/** Keys of a request that change nothing in its picture, or that a result says itself. */
const NOT_SHOWN = new Set([
  "model",
  "seed",
  "seeds",
  "n",
  "stream",
  "previews",
  "attention",
  "deadline_s",
  "sampling",
]);

const isPicture = (value) => typeof value === "string" && value.length > 64;

/** A `data:` URL of a picture in base64. */
export const dataUrl = (base64) => `data:image/png;base64,${base64}`;

/** How long something took, such as "3.2 s". */
export const inSeconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;

/** A share as "31 %". */
export const percent = (share) => `${Math.round(100 * share)} %`;

/** A noise level with three significant digits. */
export const noiseLevel = (sigma) => (sigma >= 1e9 ? "∞" : String(Number(sigma.toPrecision(3))));

/** A model's name and version; `model` is a `ModelId` of the service. */
export const modelName = ({ name, version }) => (version ? `${name}, version ${version}` : name);

/** What a setting's value says: `{text, pictures: {url, alt}[]}`. */
function said(key, value) {
  if (key === "paint") {
    return {
      text: value.map(({ phrase, strength }) => `${phrase} (strength ${strength})`).join("; "),
      pictures: value
        .filter(({ where }) => isPicture(where))
        .map(({ phrase, where }) => ({ url: dataUrl(where), alt: `where ${phrase} is painted` })),
    };
  }
  if (key === "style") {
    return {
      text: value.map(({ weight }) => `weight ${weight}`).join("; "),
      pictures: value.map(({ image }) => ({ url: dataUrl(image), alt: "style reference" })),
    };
  }
  if (["image", "mask", "variation"].includes(key) && isPicture(value)) {
    return { text: "", pictures: [{ url: dataUrl(value), alt: NAMES[key] }] };
  }
  if (key === "switch") return { text: `after ${percent(value)} of the steps`, pictures: [] };
  return { text: typeof value === "string" ? value : JSON.stringify(value), pictures: [] };
}

/** Guidance as a number if it is the same for all experts and noise levels. */
function plainGuidance(guidance) {
  const { scale, experts = {}, interval = null } = guidance ?? {};
  const isPlain = scale !== undefined && !Object.keys(experts).length && interval === null;
  return isPlain ? scale : guidance;
}

const isEmpty = (value) => value === undefined || value === null || value.length === 0;

/**
 * Settings of a result, in the order in which people read them.
 *
 * @param {object} result one of `state.results`.
 * @param {object[]} models that the service has; they say what a request left to its model.
 * @returns {{name: string, text: string, pictures: {url: string, alt: string}[], value: any}[]}
 */
export function settingsOf(result, models) {
  const { request, seed, number, model } = result;
  const given = Object.entries(request).filter(([key]) => !NOT_SHOWN.has(key));
  const own = models.find(({ id }) => id.manifest === model.manifest)?.stages[0].sampling ?? {};
  const sampling = { guidance: own.guidance, steps: own.steps, ...request.sampling };
  sampling.guidance = plainGuidance(sampling.guidance);
  const order = Object.keys(NAMES);
  const place = ([key]) => (order.includes(key) ? order.indexOf(key) : order.length);
  const settings = [...given, ...Object.entries(sampling)]
    .filter(([, value]) => !isEmpty(value))
    .sort((a, b) => place(a) - place(b))
    .map(([key, value]) => ({ name: NAMES[key] ?? key, ...said(key, value), value }));
  const whose = { name: "Model", text: modelName(model), pictures: [], value: model.manifest };
  return [
    ...settings,
    { name: "Seed", ...said("seed", seed), value: seed },
    ...(number ? [{ name: "Number of the seed", ...said("number", number), value: number }] : []),
    whose,
  ];
}

/** Settings in which two results differ: `[name, setting or undefined, setting or undefined][]`. */
export function differences(left, right, models) {
  const [a, b] = [left, right].map(
    (result) => new Map(settingsOf(result, models).map((setting) => [setting.name, setting])),
  );
  return [...new Set([...a.keys(), ...b.keys()])]
    .map((name) => [name, a.get(name), b.get(name)])
    .filter(([, x, y]) => JSON.stringify(x?.value) !== JSON.stringify(y?.value));
}
