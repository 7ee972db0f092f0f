/** The session: all that the page's parts share, and that a reload keeps. */

import { fromMasks, PALETTE, SIDE, toMask } from "./masks.js";
import { Pictures, readControls, writeControls } from "./storage.js";

const UNDO_STEPS = 50;

/** `null` stands for the model's own. */
const SETTINGS = {
  negative: "",
  guidance: null,
  steps: null,
  seed: 0,
  seedLocked: false,
  n: 1,
  stage: null,
  model: null,
  attention: false,
};

/** Matches of a phrase in a prompt: whole words, whatever their case, as the service finds them. */
export function occurrences(text, prompt) {
  const words = text.trim().split(/\s+/u).map((w) => w.replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&"));
  const edge = "[\\p{L}\\p{N}_]";
  return [...prompt.matchAll(new RegExp(`(?<!${edge})${words.join("\\s+")}(?!${edge})`, "giu"))];
}

/** Fields that are kept besides pictures. */
const CONTROLS = ["prompt", "phrases", "active", "settings"];

/** A random seed, exact in JSON. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** A new id. `crypto.randomUUID` is not there on a page that comes from another machine by HTTP. */
export function randomId() {
  return crypto.getRandomValues(new Uint32Array(4)).join("-");
}

/**
 * The session. Read its fields; change them by its methods, which tell the subscribers.
 *
 * @property {string} prompt
 * @property {{slot: number, text: string, strength: number}[]} phrases in order of the slots.
 * @property {number|null} active slot of the phrase that is painted; null for the eraser.
 * @property {Uint8Array} paint slot of each pixel, {@link SIDE} × SIDE, 0 for nothing.
 * @property {{image: string, weight: number}[]} styles reference pictures as data URLs.
 * @property {object} settings as {@link SETTINGS}.
 * @property {object[]} results finished pictures, oldest first: `{id, png, request, seed, number,
 *   model, seconds, attention, finishedAt}`; `png` is a data URL, `finishedAt` in ms since 1970.
 * @property {object|null} info what `GET /v1/ediffi/model` says.
 * @property {object|null} drawing the request at work, see draw.js.
 * @property {string} trouble what went wrong, for people; "" if nothing.
 */
export class State {
  #listeners = new Set();
  #undo = [];
  #redo = [];
  #pictures;

  /** The session that this browser keeps. */
  static async open() {
    const pictures = await Pictures.open();
    const state = new State(pictures);
    const { settings, ...controls } = readControls();
    Object.assign(state, controls, { settings: { ...SETTINGS, ...settings } });
    state.paint = (await pictures.get("paint")) ?? state.paint;
    state.styles = (await pictures.get("styles")) ?? [];
    const results = await pictures.results();
    state.results = results.sort((a, b) => a.finishedAt - b.finishedAt || a.number - b.number);
    return state;
  }

  constructor(pictures) {
    this.#pictures = pictures;
    this.prompt = "";
    this.phrases = [];
    this.active = null;
    this.paint = new Uint8Array(SIDE * SIDE);
    this.styles = [];
    this.settings = { ...SETTINGS, seed: randomSeed() };
    this.results = [];
    this.info = null;
    this.drawing = null;
    this.trouble = "";
  }

  /**
   * Call a listener now, and after each change of one of some fields.
   *
   * @param {string[]} fields
   * @param {() => void} listener
   * @returns {() => void} ends the subscription.
   */
  subscribe(fields, listener) {
    const entry = { fields, listener };
    this.#listeners.add(entry);
    listener();
    return () => this.#listeners.delete(entry);
  }

  /** Set fields, keep them for the next visit, and tell the subscribers. */
  set(changes) {
    Object.assign(this, changes);
    if (CONTROLS.some((key) => key in changes)) {
      writeControls(Object.fromEntries(CONTROLS.map((key) => [key, this[key]])));
    }
    for (const key of ["paint", "styles"]) {
      if (key in changes) this.#keep(this.#pictures.put(key, this[key]));
    }
    this.#tell(Object.keys(changes));
  }

  /** Set some of the settings. */
  setSettings(changes) {
    this.set({ settings: { ...this.settings, ...changes } });
  }

  #tell(fields) {
    for (const entry of [...this.#listeners]) {
      if (entry.fields.some((field) => fields.includes(field))) entry.listener();
    }
  }

  /** Tell of trouble with what is written; resolves to whether there was none. */
  async #keep(written) {
    try {
      await written;
      return true;
    } catch (error) {
      this.trouble = `This browser keeps no more pictures of the session (${error.message}).`;
      this.#tell(["trouble"]);
      return false;
    }
  }

  // -- phrases and paint ------------------------------------------------------------------------

  /** The phrase of a slot. */
  phrase(slot) {
    return this.phrases.find((phrase) => phrase.slot === slot);
  }

  /** Whether the prompt no longer has a phrase. */
  isLost(phrase) {
    return !occurrences(phrase.text, this.prompt).length;
  }

  /** The first free slot; undefined if all colours are taken. */
  freeSlot() {
    const slot = PALETTE.findIndex((colour, i) => colour && !this.phrase(i));
    return slot > 0 ? slot : undefined;
  }

  /** Remember phrases and paint as they are, before a change that can be undone. */
  checkpoint() {
    this.#undo.push(this.#snapshot());
    this.#undo.splice(0, this.#undo.length - UNDO_STEPS);
    this.#redo.length = 0;
  }

  #snapshot() {
    return { phrases: this.phrases, active: this.active, paint: this.paint.slice() };
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  undo() {
    this.#travel(this.#undo, this.#redo);
  }

  redo() {
    this.#travel(this.#redo, this.#undo);
  }

  #travel(from, to) {
    if (!from.length) return;
    to.push(this.#snapshot());
    this.set(from.pop());
  }

  /** Pictures that the service draws for one request. */
  get mostPictures() {
    return this.info?.limits?.pictures ?? 1;
  }

  // -- requests and results ---------------------------------------------------------------------

  /** Painted phrases that are sent: those that the prompt has and that are painted somewhere. */
  painted() {
    const used = new Set(this.paint);
    return this.phrases.filter((phrase) => used.has(phrase.slot) && !this.isLost(phrase));
  }

  /** Body of `POST /v1/ediffi/sample` for the session as it is. */
  request() {
    const { negative, guidance, steps, seed, n, stage, model, attention } = this.settings;
    const sampling = {
      ...(guidance !== null && { guidance }),
      ...(steps !== null && { steps }),
    };
    const paint = this.painted().map(({ slot, text, strength }) => ({
      phrase: text,
      where: toMask(this.paint, slot),
      strength,
    }));
    const style = this.styles.map(({ image, weight }) => ({ image: image.split(",")[1], weight }));
    return {
      ...(model && { model }),
      prompt: this.prompt,
      n: Math.min(n, this.mostPictures),
      seed,
      ...(negative.trim() && { negative }),
      ...(Object.keys(sampling).length && { sampling }),
      ...(stage && { stage }),
      ...(paint.length && { paint }),
      ...(style.length && { style }),
      previews: this.info?.defaults?.previews ?? true,
      attention,
    };
  }

  /** Set all controls as a request has them; its seed is locked, so that it draws the same. */
  async use(request) {
    const painted = (request.paint ?? []).slice(0, PALETTE.length - 1);
    const paint = await fromMasks(painted.map(({ where }, i) => [i + 1, where]));
    this.checkpoint();
    this.set({
      prompt: request.prompt,
      phrases: painted.map(({ phrase, strength }, i) => ({ slot: i + 1, text: phrase, strength })),
      active: painted.length ? 1 : null,
      paint,
      styles: (request.style ?? []).map(({ image, weight }) => ({
        image: `data:image/png;base64,${image}`,
        weight,
      })),
      settings: {
        negative: request.negative ?? "",
        guidance: request.sampling?.guidance ?? null,
        steps: request.sampling?.steps ?? null,
        seed: request.seed,
        seedLocked: true,
        n: request.n,
        stage: request.stage ?? null,
        model: request.model ?? null,
        attention: request.attention,
      },
    });
  }

  /** Add a picture as a reference of style; the oldest goes if there are too many. */
  addStyle(image) {
    const most = this.info?.limits?.styles ?? 4;
    this.set({ styles: [...this.styles, { image, weight: 1 }].slice(-most) });
  }

  /** Add a finished picture. */
  addResult(result) {
    this.results = [...this.results, result];
    this.#keep(this.#pictures.putResult(result));
    this.#tell(["results"]);
  }

  /** Change fields of a finished picture. */
  updateResult(id, changes) {
    this.results = this.results.map((r) => (r.id === id ? { ...r, ...changes } : r));
    this.#keep(this.#pictures.putResult(this.results.find((r) => r.id === id)));
    this.#tell(["results"]);
  }

  /** Remove finished pictures; resolves to whether the browser has removed them, too. */
  removeResults(ids) {
    this.results = this.results.filter((r) => !ids.includes(r.id));
    const kept = this.#keep(this.#pictures.removeResults(ids));
    this.#tell(["results"]);
    return kept;
  }
}
