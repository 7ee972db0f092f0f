/** The prompt, its words as buttons, and the phrases made of them. */

import { element } from "./elements.js";
import { PALETTE } from "./masks.js";
import { occurrences } from "./state.js";

const STRONGEST = 2;

/** Slots whose colours are dark, and so carry white digits. */
const DARK = new Set([2, 4, 6, 9]);

/** Words of a prompt without the punctuation around them, as `{text, start, end}`. */
function wordsOf(prompt) {
  const word = /[\p{L}\p{N}_](?:\S*[\p{L}\p{N}_])?/gu;
  return [...prompt.matchAll(word)].map((m) => ({
    text: m[0],
    start: m.index,
    end: m.index + m[0].length,
  }));
}

/** Show a slot's colour on an element. */
function colour(element, slot) {
  element.style.setProperty("--colour", PALETTE[slot]);
  element.style.setProperty("--on-colour", DARK.has(slot) ? "#fff" : "#111");
}

/** Mount the prompt, its words and the phrases. */
export function mountPhrases(state) {
  const prompt = document.getElementById("prompt");
  const list = document.getElementById("words");
  const help = document.getElementById("words-help");
  const phrases = document.getElementById("phrases");
  let words = [];
  let anchor = null; // number of the word from which Shift extends
  let drag = null; // {from, to} while a pointer is down

  prompt.addEventListener("input", () => state.set({ prompt: prompt.value }));
  list.addEventListener("pointerdown", (event) => {
    const at = indexAt(event);
    if (at === null || event.shiftKey || event.button) return;
    drag = { from: at, to: at };
    addEventListener("pointerup", drop, { once: true });
    addEventListener("pointercancel", cancel, { once: true });
  });
  list.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.to = indexAt(event) ?? drag.to;
    markChosen();
  });
  list.addEventListener("click", (event) => {
    const at = indexAt(event);
    if (at === null) return;
    if (event.shiftKey && anchor !== null) choose(anchor, at);
    else pick(at);
  });

  state.subscribe(["prompt"], () => {
    if (prompt.value !== state.prompt) prompt.value = state.prompt;
    showWords();
  });
  state.subscribe(["prompt", "phrases", "active"], () => {
    paintWords();
    showPhrases();
  });

  /** Number of the word at an event; null if it is at none. */
  function indexAt(event) {
    const isKey = event.type === "click" && event.detail === 0;
    const target = isKey ? event.target : document.elementFromPoint(event.clientX, event.clientY);
    const button = target?.closest("#words button");
    return button ? [...list.children].indexOf(button) : null;
  }

  function drop() {
    removeEventListener("pointercancel", cancel);
    const { from, to } = drag;
    drag = null;
    markChosen();
    if (from !== to) choose(from, to);
  }

  function cancel() {
    removeEventListener("pointerup", drop);
    drag = null;
    markChosen();
  }

  function markChosen() {
    const [low, high] = drag ? [drag.from, drag.to].sort((a, b) => a - b) : [1, 0];
    const isRange = low < high;
    [...list.children].forEach((button, i) =>
      button.classList.toggle("chosen", isRange && i >= low && i <= high),
    );
  }

  /** The phrases that have a word, the shortest first. */
  function phrasesAt({ start, end }) {
    return state.phrases
      .filter(({ text }) =>
        occurrences(text, state.prompt).some((m) => m.index < end && m.index + m[0].length > start),
      )
      .sort((a, b) => a.text.length - b.text.length);
  }

  function pick(at) {
    anchor = at;
    const [phrase] = phrasesAt(words[at]);
    if (phrase) state.set({ active: phrase.slot });
    else choose(at, at);
  }

  /** Make one phrase of a range of words; phrases that have some of them are joined to it. */
  function choose(from, to) {
    const [low, high] = [from, to].sort((a, b) => a - b);
    const range = { start: words[low].start, end: words[high].end };
    const text = state.prompt.slice(range.start, range.end);
    const joined = phrasesAt(range);
    const slot = joined[0]?.slot ?? state.freeSlot();
    if (slot === undefined) {
      state.set({ trouble: "All colours are taken. Remove a phrase to paint another." });
      return;
    }
    if (!state.info) {
      state.set({ trouble: "The service has not said yet what it can draw." });
      return;
    }
    state.checkpoint();
    const gone = new Set(joined.map((phrase) => phrase.slot));
    const strength = joined[0]?.strength ?? state.info.defaults.strength;
    const made = { slot, text, strength };
    const others = state.phrases.filter((phrase) => !gone.has(phrase.slot));
    state.set({
      phrases: [...others, made].sort((a, b) => a.slot - b.slot),
      active: slot,
      paint: state.paint.map((painted) => (gone.has(painted) ? slot : painted)),
    });
  }

  function remove(slot) {
    state.checkpoint();
    const rest = state.phrases.filter((phrase) => phrase.slot !== slot);
    state.set({
      phrases: rest,
      active: state.active === slot ? (rest[0]?.slot ?? null) : state.active,
      paint: state.paint.map((painted) => (painted === slot ? 0 : painted)),
    });
  }

  function showWords() {
    words = wordsOf(state.prompt);
    anchor = null;
    help.hidden = !words.length;
    list.replaceChildren(
      ...words.map(({ text }) =>
        element("button", { type: "button", className: "word", textContent: text }),
      ),
    );
  }

  function paintWords() {
    [...list.children].forEach((button, i) => {
      const [phrase] = phrasesAt(words[i]);
      button.classList.toggle("of-phrase", Boolean(phrase));
      button.classList.toggle("of-active", Boolean(phrase) && phrase.slot === state.active);
      button.setAttribute("aria-pressed", String(Boolean(phrase)));
      if (phrase) colour(button, phrase.slot);
    });
  }

  function showPhrases() {
    const focused = document.activeElement?.id;
    phrases.replaceChildren(...state.phrases.map(phraseRow));
    if (focused && !document.activeElement?.id) document.getElementById(focused)?.focus();
  }

  function phraseRow({ slot, text, strength }) {
    const isLost = state.isLost({ text });
    const isActive = slot === state.active;
    const swatch = element("span", { className: "swatch", textContent: slot });
    const choose = element(
      "button",
      { type: "button", className: "choose", id: `phrase-${slot}`, title: `Paint (${slot})` },
      swatch,
      text,
    );
    choose.setAttribute("aria-pressed", String(isActive));
    choose.addEventListener("click", () => state.set({ active: slot }));

    const value = element("output", { textContent: strength.toFixed(2) });
    const slider = element("input", {
      type: "range", id: `strength-${slot}`, min: 0, max: STRONGEST, step: 0.05, value: strength,
    });
    slider.setAttribute("aria-label", `Strength of ${text}`);
    slider.addEventListener("input", () => (value.textContent = Number(slider.value).toFixed(2)));
    slider.addEventListener("change", () =>
      state.set({
        phrases: state.phrases.map((phrase) =>
          phrase.slot === slot ? { ...phrase, strength: Number(slider.value) } : phrase,
        ),
      }),
    );

    const gone = element("button", { type: "button", className: "remove quiet" }, "✕");
    gone.setAttribute("aria-label", `Remove ${text}`);
    gone.addEventListener("click", () => remove(slot));

    const strengths = element("label", { className: "strength" }, "strength ", slider, value);
    const row = element("li", {}, choose, strengths, gone);
    row.classList.toggle("active", isActive);
    row.classList.toggle("lost", isLost);
    colour(row, slot);
    if (isLost) {
      row.append(element("span", { className: "note" }, "Not in the prompt any more; not sent."));
    }
    return row;
  }
}
