/** The pictures of the session, newest first. */

import { inSeconds, modelName, settingsOf } from "./describe.js";
import { button, element, picture, shown } from "./elements.js";

/** Pictures that are kept; the oldest go. */
export const MOST = 200;

/**
 * Mounts the gallery. It asks the other panels by the events `studio:compare`, whose detail is two
 * ids, left and right, and `studio:attention`, whose detail is an id.
 */
export function mountGallery(state, root) {
  const list = element("ul", { class: "thumbnails", role: "list" });
  const empty = element("p", { class: "soft" }, "Pictures that you draw are kept here.");
  const notice = element("p", { class: "notice", role: "status" });
  const count = element("span", { class: "soft" });
  const clear = button("Clear all", askToClear);
  const keys = element(
    "p",
    { class: "soft small" },
    "Arrow keys move, Enter opens, C compares, Delete removes.",
  );
  const view = element("dialog", { class: "view", "aria-label": "Picture and its settings" });
  root.setAttribute("aria-labelledby", "gallery-title");
  root.append(
    element(
      "header",
      { class: "head" },
      element("h2", { id: "gallery-title" }, "Gallery"),
      count,
      clear,
    ),
    notice,
    empty,
    list,
    keys,
    view,
  );

  let current = null; // id of the thumbnail that the keyboard is at
  let opened = null; // id of the picture that is shown large
  let first = null; // id of the first of two pictures to compare

  const newestFirst = () => state.results.toReversed();
  const find = (id) => state.results.find((result) => result.id === id);
  const thumbnail = (id) =>
    [...list.querySelectorAll("button")].find((found) => found.dataset.id === id);

  function render() {
    const excess = state.results.slice(0, -MOST);
    if (excess.length) {
      say(`The gallery keeps ${MOST} pictures: the oldest is removed. Download what you need.`);
      state.removeResults(excess.map(({ id }) => id));
      return;
    }
    const results = newestFirst();
    if (!find(current)) current = results[0]?.id ?? null;
    if (!find(first)) first = null;
    const hadFocus = list.contains(document.activeElement);
    list.replaceChildren(...results.map(item));
    if (hadFocus) thumbnail(current)?.focus();
    count.textContent = results.length === 1 ? "1 picture" : `${results.length} pictures`;
    empty.hidden = results.length > 0;
    clear.hidden = count.hidden = keys.hidden = !empty.hidden;
    if (view.open && !find(opened)) view.close();
  }

  function say(text) {
    notice.textContent = text;
  }

  function item(result) {
    const { id, png, request, seed, model, finishedAt } = result;
    return element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          class: "thumbnail",
          "data-id": id,
          "aria-haspopup": "dialog",
          tabIndex: id === current ? 0 : -1,
          onclick: () => open(id),
          onfocus: () => moveTo(id),
          onkeydown: onKey,
        },
        picture(png, "", { loading: "lazy" }),
        element("span", { class: "prompt" }, request.prompt),
        element("span", { class: "soft small" }, `seed ${seed}, ${clock(finishedAt)}`),
        element("span", { class: "soft small" }, modelName(model)),
        id === first ? element("span", { class: "badge" }, "to compare") : null,
      ),
    );
  }

  function moveTo(id) {
    thumbnail(current).tabIndex = -1;
    current = id;
    thumbnail(current).tabIndex = 0;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = steps()[event.key];
    if (step) {
      const results = newestFirst();
      const at = results.findIndex(({ id }) => id === current) + step;
      thumbnail(results[Math.max(0, Math.min(results.length - 1, at))].id).focus();
    } else if (event.key === "Delete") remove(current);
    else if (event.key === "c") compare(current);
    else return;
    event.preventDefault();
  }

  /** By how many pictures each key moves. */
  function steps() {
    const tops = [...list.children].map((li) => li.offsetTop);
    const row = tops.filter((top) => top === tops[0]).length;
    return {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -row,
      ArrowDown: row,
      Home: -tops.length,
      End: tops.length,
    };
  }

  function remove(id) {
    const results = newestFirst();
    const at = results.findIndex((result) => result.id === id);
    current = (results[at + 1] ?? results[at - 1])?.id ?? null;
    removeAll([id], "The picture is removed.");
  }

  async function removeAll(ids, done) {
    if (await state.removeResults(ids)) say(done);
  }

  function compare(id) {
    const pair = [first, id];
    first = first === null ? id : null;
    if (first !== null) say("Choose Compare at a second picture.");
    else if (pair[0] === id) say("No picture is chosen for the comparison.");
    else {
      say("");
      root.dispatchEvent(new CustomEvent("studio:compare", { bubbles: true, detail: pair }));
    }
    render();
  }

  function open(id) {
    const result = find(id);
    const results = newestFirst();
    const at = results.findIndex((other) => other.id === id);
    const neighbour = (label, step) =>
      button(label, () => open(results[at + step].id), { disabled: !results[at + step] });
    opened = id;
    view.replaceChildren(
      element(
        "header",
        { class: "head" },
        element("h3", { tabIndex: -1 }, `${at + 1} of ${results.length}`),
        neighbour("Newer", -1),
        neighbour("Older", 1),
        button("Close", () => view.close()),
      ),
      element(
        "div",
        { class: "beside" },
        picture(result.png, result.request.prompt, { class: "pixels large" }),
        element("div", {}, actions(result), descriptions(result)),
      ),
    );
    if (!view.open) view.showModal();
    view.querySelector("h3").focus();
  }

  view.addEventListener("keydown", (event) => {
    const results = newestFirst();
    const at = results.findIndex(({ id }) => id === opened);
    const to = { ArrowLeft: results[at - 1], ArrowRight: results[at + 1] }[event.key];
    if (to) open(to.id);
    else if (event.key === "Delete") removeOpened();
  });
  view.addEventListener("close", () => {
    if (find(opened)) moveTo(opened);
    thumbnail(current)?.focus();
  });

  function removeOpened() {
    remove(opened);
    thumbnail(current)?.focus();
  }

  function actions(result) {
    const { id, png, request, seed, attention } = result;
    const closing = (label, act, properties) =>
      button(
        label,
        () => {
          view.close();
          act();
        },
        properties,
      );
    return element(
      "div",
      { class: "choices" },
      closing("Use these settings again", () => use({ ...request, seed }), { class: "primary" }),
      closing("Use as style", () => {
        state.addStyle(png);
        say("The picture is a style reference now.");
      }),
      element("a", { class: "button", href: png, download: fileName(result) }, "Download"),
      closing("Compare", () => compare(id)),
      attention?.words.length
        ? closing("Show its attention", () =>
            root.dispatchEvent(new CustomEvent("studio:attention", { bubbles: true, detail: id })),
          )
        : null,
      button("Remove", removeOpened),
    );
  }

  async function use(request) {
    await state.use(request);
    say("The controls have the settings of the picture.");
  }

  function descriptions(result) {
    const when = new Date(result.finishedAt).toLocaleString();
    const drawn = `${when}, in ${inSeconds(result.seconds)}`;
    return element(
      "dl",
      {},
      ...[
        ...settingsOf(result, state.info?.models ?? []),
        { name: "Drawn", text: drawn, pictures: [] },
      ].flatMap((setting) => [
        element("dt", {}, setting.name),
        element("dd", {}, ...shown(setting)),
      ]),
    );
  }

  function askToClear() {
    const all = state.results.length;
    const asked = element(
      "dialog",
      { "aria-label": "Clear the gallery", onclose: () => asked.remove() },
      element("p", {}, `Remove ${all === 1 ? "the picture" : `all ${all} pictures`} for good?`),
      element(
        "div",
        { class: "choices" },
        button("Keep", () => asked.close()),
        button("Remove all", () => {
          asked.close();
          const ids = state.results.map(({ id }) => id);
          removeAll(ids, "The gallery is empty.");
        }),
      ),
    );
    root.append(asked);
    asked.showModal();
  }

  state.subscribe(["results"], render);
}

const clock = (time) =>
  new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** The prompt's words and the seed. */
function fileName({ request, seed, number }) {
  const words = request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${[...words.join("-").slice(0, 60).split("-"), seed, number].join("-")}.png`;
}
