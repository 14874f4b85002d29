// The plots of LatentPlayer: a box with lines, ticks and texts.

/** A plot: paths in a box with x from `left` to `right` and y from -1 (top) to 0. */
class Plot {
  constructor(title, [left, right]) {
    this.title = make("span", {}, title);
    this.line = make("span", { class: "osl-label" });
    this.svg = svg("svg", { viewBox: `${left} -1 ${right - left} 1`, preserveAspectRatio: "none", role: "img" });
    [this.left, this.right] = [left, right];
    this.below = make("div", { class: "osl-player-ticks", "aria-hidden": "true" });
    this.beside = make("div", { class: "osl-player-levels", "aria-hidden": "true" });
    this.text = make("div", { class: "osl-player-says osl-number" });
    this.node = make(
      "figure",
      { class: "osl-player-plot" },
      make("figcaption", {}, this.title, this.line),
      make("div", { class: "osl-player-box" }, this.svg, this.beside),
      this.below,
      this.text,
    );
  }

  /** The title, and the legend of the thin line. */
  setTitle(title, line) {
    showSymbols(this.title, title);
    write(this.line, line);
  }

  /** Paths as [class, d]; falsy ones are left out. */
  draw(paths) {
    this.svg.replaceChildren(...paths.filter(Boolean).map(([name, d]) => svg("path", { class: `osl-player-${name}`, d })));
  }

  /** Labels below the box as [x, text]. */
  setTicks(pairs) {
    const place = (x) => `left: ${(100 * (x - this.left)) / (this.right - this.left)}%`;
    this.below.replaceChildren(...pairs.map(([x, text]) => make("span", { style: place(x) }, text)));
  }

  /** Labels at the left edge of the box as [y, text], y from 0 (bottom) to 1. */
  setLevels(pairs) {
    this.beside.replaceChildren(...pairs.map(([y, text]) => make("span", { style: `top: ${100 - 100 * y}%` }, text)));
  }

  /** Values below the plot, one line for each trace. */
  setText(lines) {
    const texts = lines.map((line, i) => (lines.length > 1 ? `${"AB"[i]}: ${line}` : line));
    this.text.replaceChildren(...texts.map((text) => make("div", { title: text }, text)));
    set(this.svg, { "aria-label": `${this.title.textContent}: ${texts.join("; ")}` });
  }
}

/** log10 of the signal-to-noise ratio at every step, with the current step marked. */
class SignalToNoise {
  constructor(tracks) {
    this.tracks = tracks;
    const all = tracks[0].steps;
    this.plot = new Plot("Signal-to-noise ratio, by step", [0, 1]);
    this.plot.node.classList.add("osl-player-snr");
    const values = all.map((step) => step[3]);
    this.low = Math.floor(Math.min(...values) / 2) * 2;
    this.high = Math.max(this.low + 2, Math.ceil(Math.max(...values) / 2) * 2);
    this.x = (i) => (i + 0.5) / all.length;
    this.y = (value) => (clamp(value, this.low, this.high) - this.low) / (this.high - this.low);
    const starts = (step, i) => !i || step[0] !== all[i - 1][0]; // a loop begins
    this.line = all.map((step, i) => `${starts(step, i) ? "M" : "L"}${this.x(i)} ${-this.y(step[3])}`).join("");
    this.walls = all.map((step, i) => (i && starts(step, i) ? `M${i / all.length} 0V-1` : "")).join("");
    const powers = Array.from({ length: (this.high - this.low) / 2 + 1 }, (_, i) => this.low + 2 * i);
    this.plot.setLevels(powers.map((power) => [this.y(power), power ? `10${superscript(power)}` : "1"]));
    this.plot.setTicks([0, all.length - 1].filter((i, n) => !n || i).map((i) => [this.x(i), `t ${all[i][2]}`]));
  }

  mark(at) {
    const values = at.map((index, i) => this.tracks[i].steps[index][3]);
    const x = this.x(at[0]);
    this.plot.draw([
      ["faint", `M0 ${-this.y(0)}H1`], // as much signal as noise
      ["faint", this.walls],
      ["thin", `M${x} 0V-1`],
      ["line", this.line],
      values.length > 1 && ["ring", `M${x} ${-this.y(values[1])}h0`],
      values.length > 1 && ["hole", `M${x} ${-this.y(values[1])}h0`],
      ["dot", `M${x} ${-this.y(values[0])}h0`],
    ]);
    this.plot.setText(values.map((value) => `SNR ${shortNumber(10 ** value)}`));
  }
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, attributes);
  node.append(...children);
  return node;
}

/** A number with two significant digits, with an exponent only below 0.001. */
function shortNumber(value) {
  const size = Math.abs(value);
  if (!size) return "0";
  if (size >= 100) return minus(Math.round(value).toLocaleString("en"));
  return minus(size < 1e-3 ? value.toExponential(1) : `${Number(value.toPrecision(2))}`);
}

function minus(text) {
  return text.replaceAll("-", "−");
}

function superscript(value) {
  return [...`${value}`].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
}
