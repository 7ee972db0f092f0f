/** Opens the session and mounts the page's parts. */

import * as api from "./api.js";
import { mountAttention } from "./attention.js";
import { mountCompare } from "./compare.js";
import { mountDraw } from "./draw.js";
import { mountGallery } from "./gallery.js";
import { mountPaint } from "./paint.js";
import { mountPhrases } from "./phrases.js";
import { mountSettings } from "./settings.js";
import { State } from "./state.js";
import { mountVersus } from "./versus.js";

const find = (id) => document.getElementById(id);

function mountTheme() {
  const choice = find("theme");
  choice.value = localStorage.getItem("ediffi-theme") ?? "";
  choice.addEventListener("change", show);
  show();

  function show() {
    document.documentElement.dataset.theme = choice.value;
    localStorage.setItem("ediffi-theme", choice.value);
  }
}

function mountAlert(state) {
  state.subscribe(["trouble"], () => {
    find("alert").hidden = !state.trouble;
    find("alert-text").textContent = state.trouble;
  });
  find("alert-close").addEventListener("click", () => state.set({ trouble: "" }));
}

/** Ask what is served; until it is known, the token or the trouble is shown. */
async function connect(state) {
  try {
    const info = await api.model();
    state.set({ info, trouble: "" });
    find("token-form").hidden = true;
  } catch (error) {
    find("token-form").hidden = error.status !== 401;
    state.set({ trouble: error.message });
  }
}

function mountToken(state) {
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.setToken(find("token").value);
    connect(state);
  });
}

mountTheme();
/** The session at hand. */
export const state = await State.open();
mountAlert(state);
mountToken(state);
mountPhrases(state);
mountPaint(state);
mountSettings(state);
mountDraw(state, api);
mountGallery(state, find("gallery"));
mountAttention(state, find("attention"));
mountCompare(state, find("compare"));
mountVersus(state, find("versus"), api);
await connect(state);
document.documentElement.dataset.ready = "";
