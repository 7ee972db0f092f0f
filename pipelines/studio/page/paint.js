/** The painted square: brush, eraser, fill, undo, sketches; by pointer and by keyboard. */

import { colourOf, fromSketch, SIDE, toPixels, toSketch } from "./masks.js";

/** Diameters of the brush in pixels of the square. */
const SIZES = [8, 16, 32, 64];

const TOOLS = ["brush", "eraser", "fill"];

/** Pixels that an arrow key moves the brush by, alone and with Shift. */
const MOVE = 4;
const FAR = 16;

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const find = (id) => document.getElementById(id);

/** Paint a line of a round brush between two points. */
function stroke(paint, from, to, size, slot) {
  const radius = size / 2;
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const stamps = Math.max(1, Math.ceil(length / (radius / 2)));
  for (let i = 0; i <= stamps; i++) {
    const x = from.x + ((to.x - from.x) * i) / stamps;
    const y = from.y + ((to.y - from.y) * i) / stamps;
    const [top, bottom] = [Math.max(0, Math.floor(y - radius)), Math.min(SIDE, y + radius + 1)];
    const [left, right] = [Math.max(0, Math.floor(x - radius)), Math.min(SIDE, x + radius + 1)];
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const isInside = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius;
        if (isInside) paint[row * SIDE + column] = slot;
      }
    }
  }
}

/** Give the connected area of one slot around a point to another. */
function flood(paint, { x, y }, slot) {
  const start = Math.floor(y) * SIDE + Math.floor(x);
  const old = paint[start];
  if (old === slot) return;
  const open = [start];
  paint[start] = slot;
  while (open.length) {
    const at = open.pop();
    const column = at % SIDE;
    const neighbours = [at - SIDE, at + SIDE];
    if (column > 0) neighbours.push(at - 1);
    if (column < SIDE - 1) neighbours.push(at + 1);
    for (const next of neighbours) {
      if (paint[next] !== old) continue; // undefined beyond the upper and lower edge
      paint[next] = slot;
      open.push(next);
    }
  }
}

/** Mount the painted square and its tools. */
export function mountPaint(state) {
  const canvas = find("canvas");
  const context = canvas.getContext("2d");
  const overlay = find("overlay").getContext("2d");
  let tool = "brush";
  let size = SIZES[2];
  let working = null; // a copy of the paint while a stroke is made
  let last = null; // end of the stroke so far
  let cursor = { x: SIDE / 2, y: SIDE / 2 };
  let hover = null; // where the mouse or pen is

  mountSizes();
  for (const name of TOOLS) find(`tool-${name}`).addEventListener("click", () => useTool(name));
  find("undo").addEventListener("click", () => state.undo());
  find("redo").addEventListener("click", () => state.redo());
  find("clear").addEventListener("click", () => change((paint) => paint.fill(0)));
  find("save").addEventListener("click", save);
  find("sketch").addEventListener("click", () => find("sketch-file").click());
  find("sketch-file").addEventListener("change", (event) => {
    load(event.target.files[0]);
    event.target.value = "";
  });
  find("paper").addEventListener("dragover", (event) => event.preventDefault());
  find("paper").addEventListener("drop", (event) => {
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || working) return;
    canvas.setPointerCapture(event.pointerId);
    begin(pointOf(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    hover = event.pointerType === "touch" ? null : pointOf(event);
    const moves = event.getCoalescedEvents?.() ?? [];
    if (working) for (const move of moves.length ? moves : [event]) go(pointOf(move));
    showCursor();
  });
  canvas.addEventListener("pointerleave", () => {
    hover = null;
    showCursor();
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(name, end);
  canvas.addEventListener("focus", showCursor);
  canvas.addEventListener("blur", showCursor);
  canvas.addEventListener("keydown", press);
  canvas.addEventListener("keyup", (event) => {
    if (event.code === "Space") end();
  });
  document.addEventListener("keydown", travel);

  state.subscribe(["paint", "phrases"], () => show(state.paint));
  state.subscribe(["paint", "phrases", "active"], showTools);

  // -- strokes ----------------------------------------------------------------------------------

  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (part) => Math.min(Math.max(part * SIDE, 0), SIDE - 0.01);
    return {
      x: inside((event.clientX - box.left) / box.width),
      y: inside((event.clientY - box.top) / box.height),
    };
  }

  /** Slot that the tool paints; null, and a word about it, if no phrase is chosen. */
  function slotOfTool() {
    if (tool === "eraser") return 0;
    const phrase = state.phrase(state.active);
    if (!phrase) say("Choose a word of the prompt first.");
    return phrase?.slot ?? null;
  }

  function begin(point) {
    const slot = slotOfTool();
    if (slot === null) return;
    if (tool === "fill") {
      change((paint) => flood(paint, point, slot));
      return;
    }
    working = state.paint.slice();
    last = point;
    go(point);
  }

  function go(point) {
    stroke(working, last, point, size, slotOfTool());
    last = point;
    show(working);
  }

  function end() {
    if (!working) return;
    const paint = working;
    working = null;
    change((now) => now.set(paint));
  }

  /** Change the paint as one step that can be undone, if it changes at all. */
  function change(edit) {
    const paint = state.paint.slice();
    edit(paint);
    if (paint.every((slot, i) => slot === state.paint[i])) return;
    state.checkpoint();
    state.set({ paint });
  }

  // -- keyboard ---------------------------------------------------------------------------------

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const arrow = ARROWS[event.key];
    if (arrow) moveBy(arrow, event.shiftKey ? FAR : MOVE);
    else if (event.code === "Space") event.repeat || working || begin(cursor);
    else if (key === "[" || key === "]") useSize(SIZES.indexOf(size) + (key === "]" ? 1 : -1));
    else if (/^[1-9]$/.test(key)) choosePhrase(Number(key));
    else if (key === "e") useTool(tool === "eraser" ? "brush" : "eraser");
    else if (key === "b") useTool("brush");
    else if (key === "f") useTool("fill");
    else return;
    event.preventDefault();
  }

  function moveBy([right, down], by) {
    const inside = (at) => Math.min(Math.max(at, 0), SIDE - 0.01);
    cursor = { x: inside(cursor.x + right * by), y: inside(cursor.y + down * by) };
    hover = null;
    if (working) go(cursor);
    showCursor();
    const percent = (at) => Math.round((100 * at) / SIDE);
    say(`${percent(cursor.x)} % from the left, ${percent(cursor.y)} % from the top`);
  }

  function choosePhrase(slot) {
    const phrase = state.phrase(slot);
    if (!phrase) return;
    state.set({ active: slot });
    say(`Painting ${phrase.text}`);
  }

  /** Ctrl+Z, Ctrl+Shift+Z and Ctrl+Y, except in texts, which have their own undo. */
  function travel(event) {
    const isText = event.target.matches("textarea, input:not([type=range], [type=checkbox])");
    if (!(event.ctrlKey || event.metaKey) || isText || working) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) state.redo();
    else state.undo();
  }

  // -- tools ------------------------------------------------------------------------------------

  function mountSizes() {
    find("sizes").append(
      ...SIZES.map((pixels, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.title = "[ and ]";
        button.setAttribute("aria-label", `${pixels} pixels`);
        const dot = button.appendChild(document.createElement("span"));
        dot.className = "dot";
        dot.style.setProperty("--size", `${4 + 5 * i}px`);
        button.addEventListener("click", () => useSize(i));
        return button;
      }),
    );
  }

  function useSize(index) {
    size = SIZES[Math.min(Math.max(index, 0), SIZES.length - 1)];
    say(`Brush of ${size} pixels`);
    showTools();
    showCursor();
  }

  function useTool(name) {
    tool = name;
    say(find(`tool-${name}`).textContent);
    showTools();
    showCursor();
  }

  async function load(file) {
    if (!file) return;
    const url = URL.createObjectURL(file);
    try {
      if (!state.phrases.length) {
        throw new Error("Choose words first: a sketch’s colours stand for phrases.");
      }
      const sketch = await fromSketch(url, state.phrases.map((phrase) => phrase.slot));
      change((paint) => paint.set(sketch));
    } catch (error) {
      state.set({ trouble: error.message });
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  function save() {
    const link = document.createElement("a");
    link.href = toSketch(state.paint);
    link.download = "painting.png";
    link.click();
  }

  // -- what is seen and heard -------------------------------------------------------------------

  function say(text) {
    find("canvas-status").textContent = text;
  }

  function show(paint) {
    context.putImageData(toPixels(paint, colourOf), 0, 0);
  }

  function showTools() {
    for (const name of TOOLS) find(`tool-${name}`).setAttribute("aria-pressed", tool === name);
    [...find("sizes").children].forEach((button, i) =>
      button.setAttribute("aria-pressed", SIZES[i] === size),
    );
    const isEmpty = state.paint.every((slot) => slot === 0);
    find("undo").disabled = !state.canUndo;
    find("redo").disabled = !state.canRedo;
    find("clear").disabled = find("save").disabled = isEmpty;
    const phrase = state.phrase(state.active);
    find("canvas-empty").textContent = !isEmpty
      ? ""
      : phrase
        ? `Paint where “${phrase.text}” shall be.`
        : "Choose a word of the prompt, then paint here where it shall be.";
  }

  function showCursor() {
    overlay.clearRect(0, 0, SIDE, SIDE);
    const isByKey = canvas.matches(":focus-visible") && !hover;
    if (!hover && !isByKey) return;
    const { x, y } = hover ?? cursor;
    for (const [width, style] of [[3, "#fff"], [1, "#111"]]) {
      overlay.lineWidth = width;
      overlay.strokeStyle = style;
      overlay.beginPath();
      if (tool !== "fill") overlay.arc(x, y, size / 2, 0, 2 * Math.PI);
      if (isByKey || tool === "fill") {
        overlay.moveTo(x - 7, y);
        overlay.lineTo(x + 7, y);
        overlay.moveTo(x, y - 7);
        overlay.lineTo(x, y + 7);
      }
      overlay.stroke();
    }
  }
}
