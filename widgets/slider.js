// Figures with a slider, for pages without a kernel. figures.slider has stored a picture of all positions and the numbers
// of the plots beside a static figure; this puts a slider with them in its place. Where scripts don't run (GitHub, a
// notebook that is not trusted), the static figure stays.

const PERIOD = 200; // milliseconds of a position while playing

class Slider {
  constructor(figure, stored, sheet) {
    this.stored = stored;
    this.sheet = sheet;
    this.count = stored.labels.length;
    this.panels = stored.panels.map((panel) => this.panel(panel));
    this.plots = [];
    if (stored.snr) {
      const plot = new SignalToNoise([{ steps: stored.snr.map(([t, power]) => [0, 0, t, power]) }]);
      write(plot.plot.title, "Signal-to-noise ratio");
      this.plots.push({ node: plot.plot.node, show: (at) => plot.mark([at]) });
    }
    if (stored.histogram) this.plots.push(this.histogram(stored.histogram));
    if (stored.states) this.plots.push(this.states(stored.states));
    this.input = make("input", { type: "range", min: 0, max: this.count - 1, step: 1, value: stored.start });
    this.input.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.input.value));
    });
    this.button = make("button", { type: "button", onclick: () => (this.timer ? this.pause() : this.play()) }, "Play");
    this.label = make("div", { class: "osl-slider-label osl-number" }); // the slider tells it to screen readers
    const control = make(
      "div",
      { class: "osl-slider-control" },
      this.button,
      make("label", {}, make("span", {}, stored.name), this.input),
      this.label,
    );
    keepKeys(control);
    const below = this.plots.filter((plot) => plot.wide).map((plot) => plot.node);
    const beside = this.plots.filter((plot) => !plot.wide).map((plot) => plot.node);
    const parts = make("div", { class: "osl-slider-parts" }, this.panels.map((panel) => panel.node), beside);
    figure.prepend(parts, ...below, control);
    figure.querySelector("img").remove();
    this.figure = figure;
    this.show(stored.start);
  }

  show(at) {
    const label = this.stored.labels[at];
    this.panels.forEach((panel) => panel.show(at));
    this.plots.forEach((plot) => plot.show(at));
    this.input.value = at;
    set(this.input, { "aria-valuetext": label });
    write(this.label, label);
    this.figure.dataset.at = at;
  }

  /** From here to the end, or all of it where this is the end. */
  play() {
    if (Number(this.input.value) === this.count - 1) this.show(0);
    this.timer = setInterval(() => {
      const at = Number(this.input.value) + 1;
      if (!this.figure.isConnected || at >= this.count) this.pause();
      else this.show(at);
    }, PERIOD);
    write(this.button, "Pause");
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    write(this.button, "Play");
  }

  /** A picture: its tile in each position's part of the sheet. */
  panel({ title, x, width, height, scale }) {
    const canvas = make("canvas", { width, height, role: "img", style: `width: ${width * scale}px` });
    const context = canvas.getContext("2d");
    const [cellWidth, cellHeight] = this.stored.cell;
    const show = (at) => {
      const left = (at % this.stored.columns) * cellWidth + x;
      const top = Math.floor(at / this.stored.columns) * cellHeight;
      context.drawImage(this.sheet, left, top, width, height, 0, 0, width, height);
      set(canvas, { "aria-label": `${title || "picture"}, ${this.stored.labels[at]}` });
    };
    return { node: make("figure", {}, title ? make("figcaption", {}, title) : null, canvas), show };
  }

  /** Bars, and the line of an expected density. */
  histogram({ title, range, counts, density }) {
    const plot = new Plot(title, range);
    const bins = counts[0].length;
    const most = 1.05 * Math.max(...counts.flat(), ...density);
    const x = (i, parts) => range[0] + (i / parts) * (range[1] - range[0]);
    const line = density.map((y, i) => `${i ? "L" : "M"}${x(i, density.length - 1)} ${-y / most}`).join("");
    plot.setTicks([range[0], 0, range[1]].map((value) => [value, minus(`${value}`)]));
    const show = (at) => {
      const bars = counts[at].map((y, i) => `M${x(i, bins)} 0V${-y / most}H${x(i + 1, bins)}V0Z`).join("");
      plot.draw([["bars", bars], ["line", line]]);
      set(plot.svg, { "aria-label": `${title}, ${this.stored.labels[at]}` });
    };
    return { node: plot.node, show };
  }

  /** What each frame does: a row of boxes, with a legend. */
  states({ names, frames, rows }) {
    const boxes = frames.map((number) => make("span", {}, `${number}`));
    const row = make("div", { class: "osl-slider-states", style: `--osl-count: ${boxes.length}`, role: "img" }, boxes);
    const colors = ["given", "edited", "generated"];
    const keys = names.map((text, i) => make("span", { class: "osl-key", style: `--osl-color: var(--osl-${colors[i]})` }, text));
    const show = (at) => {
      boxes.forEach((box, i) => (box.dataset.state = rows[at][i]));
      const named = names.map((text, state) => [text, frames.filter((_, i) => rows[at][i] === state)]);
      const says = named.filter(([, found]) => found.length).map(([text, found]) => `${text}: ${found.join(", ")}`);
      set(row, { "aria-label": `frames, ${says.join("; ")}` });
    };
    const legend = make("div", { class: "osl-row osl-label" }, make("span", {}, "frames"), keys);
    return { node: make("div", { class: "osl-stack" }, row, legend), show, wide: true };
  }
}

for (const figure of document.querySelectorAll("figure.osl-slider:not([data-ready])")) {
  figure.dataset.ready = "";
  const stored = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const sheet = new Image();
  sheet.addEventListener("load", () => new Slider(figure, stored, sheet));
  sheet.src = stored.sheet;
}
