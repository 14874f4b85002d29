// The vocabulary of all widgets. widget.py puts it before each widget's own module, so it imports and exports nothing.

/** An element: make("button", { class: "osl-main", onclick: go }, "Generate").
 *  Attributes that are functions become listeners, true and false set or leave out the attribute; children may be texts. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  set(node, attributes);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Change attributes of an element; undefined, null and false take one away. */
function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else if (value === undefined || value === null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  return node;
}

/** Write a text only where it differs: a reader of the screen is told of changes alone. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The invisible line that tells those who do not see the screen what has just happened. */
function announcer() {
  return make("div", { class: "osl-hidden", role: "status", "aria-live": "polite" });
}

/** A labelled control: the label is clickable and read out with it. */
let labels = 0;
function labelled(text, control, attributes = {}) {
  control.id ||= `osl-${Date.now().toString(36)}-${labels++}`;
  return make("span", { class: "osl-row", ...attributes }, make("label", { for: control.id, class: "osl-label" }, text), control);
}

/** Call `update` now and whenever one of the traits changes; gives the function that ends it. */
function follow(model, traits, update) {
  const names = traits.map((name) => `change:${name}`);
  const run = () => update();
  names.forEach((name) => model.on(name, run));
  run();
  return () => names.forEach((name) => model.off(name, run));
}

/** Give traits values and tell Python. */
function send(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

/** Keys that a widget has taken must not reach the notebook, where letters are commands. */
function keepKeys(node) {
  node.addEventListener("keydown", (event) => event.stopPropagation());
}

/** Picture bytes (a DataView, as traits of bytes arrive) as the address of an <img>; the one before is given back. */
function showBytes(image, bytes, type = "image/png") {
  if (image.dataset.address) URL.revokeObjectURL(image.dataset.address);
  delete image.dataset.address;
  if (!bytes || !bytes.byteLength) return image.removeAttribute("src");
  image.dataset.address = image.src = URL.createObjectURL(new Blob([bytes], { type }));
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}
