// Helpers that all widgets share. widget.py puts this file before each widget's own module, so it imports and exports
// nothing.

// ------------------------------------------------------------------------------------------------- elements

/** An element: make("button", { class: "osl-main", onclick: go }, "Generate").
 *  Functions become listeners, true and false set or remove the attribute; children are nodes or texts. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  set(node, attributes);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Change attributes of an element; undefined, null and false remove one. */
function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else if (value === undefined || value === null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  return node;
}

/** Write a text only if it differs: screen readers announce every change. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** An invisible status line for screen readers. */
function announcer() {
  return make("div", { class: "osl-hidden", role: "status", "aria-live": "polite" });
}

/** A control with its label. */
function labelled(text, control, attributes = {}) {
  control.id ||= uniqueId();
  return make("span", { class: "osl-row", ...attributes }, make("label", { for: control.id, class: "osl-label" }, text), control);
}

let labels = 0;
function uniqueId() {
  return `osl-${Date.now().toString(36)}-${labels++}`;
}

/** A <select> of [value, text] pairs. */
function selectOf(options, onchange) {
  const choices = options.map(([value, text]) => make("option", { value }, text));
  const select = make("select", {}, choices);
  select.addEventListener("change", () => onchange(select.value));
  return select;
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}

// ------------------------------------------------------------------------------------------------- the model

/** Call `update` now and whenever one of the traits changes; returns the function that ends it. */
function follow(model, traits, update) {
  const names = traits.map((name) => `change:${name}`);
  const run = () => update();
  names.forEach((name) => model.on(name, run));
  run();
  return () => names.forEach((name) => model.off(name, run));
}

/** Set traits and send them to Python. */
function send(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

// -------------------------------------------------------------------------------------------------- keyboard

/** Keep key presses from the notebook, where letters are commands. */
function keepKeys(node) {
  node.addEventListener("keydown", (event) => event.stopPropagation());
}

const LIST_KEYS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

/** The index that a key leads to in a list of `count` options; null for other keys. */
function walk(event, index, count) {
  if (!(event.key in LIST_KEYS)) return null;
  event.preventDefault();
  return clamp(index + LIST_KEYS[event.key], 0, count - 1);
}

// ------------------------------------------------------------------------------------------- pictures and masks

/** Show picture bytes (a DataView) in an <img>; releases the previous picture. */
function showBytes(image, bytes, type = "image/png") {
  if (image.dataset.address) URL.revokeObjectURL(image.dataset.address);
  delete image.dataset.address;
  if (!bytes || !bytes.byteLength) return image.removeAttribute("src");
  image.dataset.address = image.src = URL.createObjectURL(new Blob([bytes], { type }));
}

/** Draw tile number `index` of a picture that consists of equal tiles, side by side or (`down`) one below the other. */
function drawTile(canvas, bitmap, index, count, down = false) {
  const [width, height] = down ? [bitmap.width, bitmap.height / count] : [bitmap.width / count, bitmap.height];
  Object.assign(canvas, { width, height }); // which also clears it
  canvas.getContext("2d").drawImage(bitmap, down ? 0 : -index * width, down ? -index * height : 0);
}

const MASK_LETTERS = { given: "G", edited: "E", generated: "·" };

/** What an edit ratio makes of a frame. */
function kindOf(ratio) {
  return ratio === 0 ? "given" : ratio === 1 ? "generated" : "edited";
}

/** The letters and colours of given, edited and generated frames. */
function maskLegend() {
  const key = ([kind, letter]) => make("span", { class: "osl-key", style: `--osl-color: var(--osl-${kind})` }, `${letter} ${kind}`);
  return make("span", { class: "osl-legend osl-label" }, Object.entries(MASK_LETTERS).map(key));
}
