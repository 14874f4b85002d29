// LatentPlayer: sliders for the step and the frame of a trace, pictures rendered by Python, and statistics of them.
//
// The state (step, frame, view, show, scope, rate) is set here at once and drawn when the pictures arrive: `shown` says
// which state they belong to. Only the newest state is requested, so requests don't queue up.

const PATIENCE = 1500; // milliseconds without an answer before the page says so
const IDLE = 200; // milliseconds without a change before more of the film strip is decoded

export default {
  render({ model, el }) {
    el.classList.add("osl", "osl-player");
    const player = new Player(model);
    el.append(...player.nodes);
    keepKeys(el);
    player.start(el);
    return () => player.stop();
  },
};

class Player {
  constructor(model) {
    this.model = model;
    this.plan = model.get("plan");
    this.steps = this.plan.tracks[0].steps;
    this.frames = this.plan.tracks[0].shape[1];
    this.playing = ""; // "step" or "frame" while playing
    this.drawings = 0; // the number of the last call of draw(): decoding pictures is asynchronous
    this.status = announcer();
    this.note = make("div", { class: "osl-player-note" });

    this.views = new Choice("View", Object.entries(this.plan.views).map(([name, [text]]) => [name, text]), (view) => this.go({ view }));
    this.shows = new Choice("Show as", Object.entries(this.plan.shows), (show) => this.go({ show }));
    this.stages = this.plan.tracks.map((track, number) => new Stage(track, number, this.plan.tracks.length));
    this.histogram = new Plot("Histogram", [-1, 1]);
    this.scopes = new Choice("Values of", [["frame", "this frame"], ["all", "all frames"]], (scope) => this.go({ scope }), true);
    this.snr = new SignalToNoise(this.plan.tracks);
    this.times = {
      step: new Transport("Step", this.steps.length, (step) => this.go({ step }), () => this.play("step")),
      frame: new Transport(this.plan.tracks[0].unit.replace(/^./, (letter) => letter.toUpperCase()), this.frames, (frame) => this.go({ frame }), () => this.play("frame")),
    };
    this.masks = this.plan.tracks.map(() => make("div", { class: "osl-player-mask", role: "img" }));
    this.times.frame.body.append(...this.masks);
    this.rates = make("select", { onchange: () => send(model, { rate: Number(this.rates.value) }) });
    this.films = this.plan.tracks.map((track, number) => new Film(track, number, this.stages.length, (index) => this.go({ step: this.stepNear(number, index) })));
    this.filmTitle = make("h4", { class: "osl-title osl-grow" });
    this.filling = make("input", { type: "checkbox", checked: true, onchange: () => this.fillLater() });
    this.filler = labelled("decode all steps", this.filling);

    this.nodes = [
      make("div", { class: "osl-row" }, this.views.node, this.shows.node),
      this.note,
      make(
        "div",
        { class: "osl-player-main" },
        make("div", { class: "osl-player-stages", style: `--osl-count: ${this.stages.length}` }, this.stages.map((stage) => stage.node)),
        make(
          "div",
          { class: "osl-player-side" },
          make("div", { class: "osl-player-plots" }, make("div", {}, this.histogram.node, this.scopes.node), this.snr.plot.node),
          this.times.step.node,
          this.times.frame.node,
          make("div", { class: "osl-row" }, labelled("Pictures per second", this.rates), maskLegend()),
        ),
      ),
      make("div", { class: "osl-player-filmtitle" }, this.filmTitle, this.filler),
      ...this.films.map((film) => film.node),
      this.status,
    ];
  }

  start(el) {
    this.el = el;
    const { model } = this;
    this.endings = [
      follow(model, ["step", "frame", "view", "show", "scope", "rate"], () => this.updateControls()),
      follow(model, ["shown"], () => this.draw()),
      follow(model, ["strip", "compare_strip"], () => this.films.forEach((film, i) => film.draw(bytesOf(model, "strip", i)))),
      follow(model, ["error"], () => this.showNote()),
    ];
  }

  stop() {
    this.drawings = -1;
    [this.timer, this.patience, this.idle].forEach(clearTimeout);
    this.endings.forEach((end) => end());
  }

  // -- input

  /** Request another state. */
  go(values) {
    clearTimeout(this.idle);
    send(this.model, values);
    this.expect();
  }

  /** Show a message if the requested state doesn't arrive. */
  expect() {
    clearTimeout(this.patience);
    this.patience = setTimeout(() => {
      if (!this.arrived()) this.showNote("Waiting for the kernel. If it is not running, run the cell again.");
    }, PATIENCE);
  }

  /** Update the note under the choices: waiting, or the last error, or a description of the view. */
  showNote(waiting = "") {
    const error = this.model.get("error");
    const { view, notes = [], reasons = {} } = this.drawn ?? {};
    const meaning = view ? [this.plan.views[view][1], ...notes, ...Object.values(reasons)].map(sentence).join(" ") : "";
    this.note.classList.toggle("osl-error", error !== "" && !waiting);
    showSymbols(this.note, waiting || error || meaning);
    if (waiting || error) write(this.status, waiting || error);
    if (error && this.playing) this.play(this.playing);
  }

  /** The step of the first trace nearest to a step of another trace. */
  stepNear(number, index) {
    if (!number) return index;
    const [loop, , timestep] = this.plan.tracks[number].steps[index];
    const distance = ([l, , t]) => 1e4 * Math.abs(l - loop) + Math.abs(t - timestep);
    return this.steps.reduce((best, step, i) => (distance(step) < distance(this.steps[best]) ? i : best), 0);
  }

  play(kind) {
    this.playing = this.playing === kind ? "" : kind;
    clearTimeout(this.timer);
    write(this.status, this.playing ? `Playing ${kind}s` : "Paused");
    this.times.step.showPlaying(this.playing === "step");
    this.times.frame.showPlaying(this.playing === "frame");
    if (this.playing === "step" && this.model.get("step") === this.steps.length - 1) this.go({ step: 0 });
    if (this.playing) this.timer = setTimeout(() => this.advance(), 1000 / this.model.get("rate"));
    else this.fillLater();
  }

  /** Play the next picture if the current one is drawn; otherwise draw() calls this again. */
  advance() {
    this.late = this.playing && !this.arrived();
    if (!this.playing || this.late) return;
    const now = this.model.get(this.playing);
    if (this.playing === "step" && now === this.steps.length - 1) return this.play("step");
    this.go({ [this.playing]: this.playing === "step" ? now + 1 : (now + 1) % this.frames });
    this.timer = setTimeout(() => this.advance(), 1000 / this.model.get("rate"));
  }

  /** Whether the current state is drawn. */
  arrived() {
    return ["step", "frame", "view", "show", "scope"].every((name) => this.drawn?.[name] === this.model.get(name));
  }

  /** Let Python decode more of the film strip when there is no input. */
  fillLater() {
    clearTimeout(this.idle);
    const { show, have } = this.model.get("shown");
    const missing = show === "pixels" && have.some((complete) => complete.includes("0"));
    if (missing && this.filling.checked && !this.playing) this.idle = setTimeout(() => this.model.send({ fill: true }), IDLE);
  }

  // -- drawing

  /** Update what doesn't depend on Python. */
  updateControls() {
    const { model, times } = this;
    const [step, frame] = [model.get("step"), model.get("frame")];
    const [loop, number, timestep, logSnr] = this.steps[step];
    const loops = this.plan.tracks[0].captions.length > 1 ? ` of loop ${loop}` : "";
    times.step.show(step, `${number}${loops} · t = ${timestep} · SNR ${shortNumber(timestep >= 1000 ? 0 : 10 ** logSnr)}`);
    times.frame.show(frame, `${frame} of 0…${this.frames - 1}${this.plan.tracks[0].held[frame]}`);
    this.views.show(model.get("view"));
    this.shows.show(model.get("show"));
    this.scopes.show(model.get("scope"));
    const rate = model.get("rate");
    const rates = [...new Set([2, 4, 8, 16, 24, rate])].sort((a, b) => a - b);
    this.rates.replaceChildren(...rates.map((value) => make("option", { value, selected: value === rate }, `${value}`)));
  }

  async draw() {
    const shown = this.model.get("shown");
    if (!("step" in shown)) return;
    const drawing = ++this.drawings;
    const bitmaps = await Promise.all(this.stages.map((_, i) => createImageBitmap(new Blob([bytesOf(this.model, "picture", i)]))));
    if (drawing !== this.drawings) return; // outdated, or the widget is closed
    this.drawn = shown;
    this.stages.forEach((stage, i) => stage.draw(bitmaps[i], shown, this.plan));
    this.masks.forEach((mask, i) => drawMask(mask, this.plan.tracks[i], shown.at[i], shown.frame, i, this.masks.length));
    this.drawHistogram(shown);
    this.snr.mark(shown.at);
    this.films.forEach((film, i) => film.mark(shown.at[i], shown.have[i], shown.frame));
    const [name] = this.plan.views[shown.view];
    const look = shown.show === "pixels" ? "decoded" : "in false colour";
    showSymbols(this.filmTitle, `Film strip: ${name}, ${frameName(this.plan.tracks[0], shown.frame)}, all ${this.steps.length} steps, ${look}`);
    this.filler.style.visibility = shown.show === "pixels" ? "visible" : "hidden";
    this.views.disable(shown.reasons);
    this.shows.disable(shown.reasons);
    this.showNote();
    this.el.dataset.shown = [shown.step, shown.frame, shown.view, shown.show].join(" ");
    if (this.late) this.advance();
    this.fillLater();
  }

  drawHistogram({ histograms, limit, view }) {
    const width = (2 * limit) / histograms[0].density.length;
    const top = 1.05 * Math.max(0.42, ...histograms.flatMap(({ density }) => density));
    const outline = ({ density }) => density.map((d, i) => `V${-d / top}H${-1 + ((i + 1) * width) / limit}`).join("");
    const normal = Array.from({ length: 101 }, (_, i) => {
      const x = -1 + i / 50;
      return `${x} ${-Math.exp(-((x * limit) ** 2) / 2) / Math.sqrt(2 * Math.PI) / top}`;
    });
    const [first, second] = histograms;
    this.histogram.draw([
      ["bars", `M-1 0${outline(first)}V0Z`],
      second && ["second", `M-1 0${outline(second)}V0`],
      ["thin", `M${normal.join("L")}`],
    ]);
    const tick = limit < 2 ? limit : 2 * Math.floor(limit / 4);
    this.histogram.setTicks([-tick, 0, tick].map((value) => [value / limit, shortNumber(value)]));
    this.histogram.setTitle(`Values of ${this.plan.views[view][0].split(" ")[0]}`, "— N(0, 1)");
    const describe = ({ density, mean, std, beyond, strange }) => {
      if (!density.some(Boolean) && !beyond && !strange) return "no values at this step";
      const moments = `μ ${minus(mean.toFixed(2).replace(/^-(?=0\.00$)/, ""))}, σ ${std.toFixed(2)}`;
      return `${strange ? `${strange} not finite; ` : ""}${moments}${beyond ? `; ${shortNumber(100 * beyond)} % beyond` : ""}`;
    };
    this.histogram.setText(histograms.map(describe));
  }
}

// ------------------------------------------------------------------------------------------------------- pictures

/** The picture of a trace: a panel for each channel, or one panel. Both stay in the layout, so that nothing moves. */
class Stage {
  constructor(track, number, tracks) {
    [this.track, this.number] = [track, number];
    this.name = tracks > 1 ? `${"AB"[number]} · ` : "";
    const [channels, , height, width] = track.shape;
    const panel = (text) => {
      const canvas = make("canvas", { role: "img", class: "osl-pixels", style: `aspect-ratio: ${width} / ${height}` });
      return { canvas, caption: make("figcaption", { class: "osl-label" }, text) };
    };
    this.channels = Array.from({ length: channels }, (_, c) => panel(`channel ${c}`));
    this.whole = panel("");
    this.range = make("div", { class: "osl-player-range osl-label" });
    const figure = ({ canvas, caption }) => make("figure", {}, canvas, caption);
    this.many = make("div", { class: "osl-player-channels" }, this.channels.map(figure));
    this.one = make("div", {}, figure(this.whole));
    this.caption = make("div", { class: "osl-player-caption" });
    this.kind = make("span", { class: "osl-player-kind" });
    this.activity = make("span", {});
    this.node = make(
      "section",
      { class: "osl-player-stage", "aria-label": `${this.name}picture` },
      this.caption,
      make("div", { class: "osl-player-status" }, this.kind, this.activity),
      this.range,
      make("div", { class: "osl-player-panels" }, this.many, this.one),
    );
  }

  draw(bitmap, shown, plan) {
    const index = shown.at[this.number];
    const [loop, number, timestep] = this.track.steps[index];
    const ratio = this.track.ratios[loop][shown.frame];
    const active = this.track.active[index][shown.frame] === "1";
    write(this.caption, `${this.name}${this.track.captions[loop]}`);
    set(this.caption, { title: this.track.captions[loop] });
    set(this.kind, { "data-kind": kindOf(ratio) });
    write(this.kind, `${MASK_LETTERS[kindOf(ratio)]} ${nameOf(ratio)}`);
    write(this.activity, `t = ${timestep}: ${active ? "denoised" : "waits"}`);

    const many = shown.show === "channels";
    this.many.style.visibility = many ? "visible" : "hidden";
    this.one.style.visibility = many ? "hidden" : "visible";
    const white = shortNumber(shown.scale);
    const ranges = {
      channels: `black −${white}, grey 0, white ${white}`,
      false_color: `channels 0, 1, 2 as red, green, blue; from −${white} to ${white}`,
      pixels: "decoded by the VAE",
    };
    write(this.range, ranges[shown.show]);
    const panels = many ? this.channels : [this.whole];
    panels.forEach(({ canvas, caption }, c) => {
      drawTile(canvas, bitmap, c, panels.length);
      const what = `${plan.views[shown.view][0]} of ${frameName(this.track, shown.frame)} at step ${number}, t = ${timestep}`;
      set(canvas, { "aria-label": `${this.name}${what}, ${many ? caption.textContent : ranges[shown.show]}` });
    });
  }
}

// ------------------------------------------------------------------------------------- steps, frames and their masks

/** A slider with its value as text, and a play button. */
class Transport {
  constructor(name, count, go, play) {
    this.name = name;
    this.value = make("output", { class: "osl-number" });
    this.slider = make("input", { type: "range", min: 0, max: count - 1, step: 1, disabled: count < 2 });
    this.slider.addEventListener("input", () => go(Number(this.slider.value)));
    this.slider.id = uniqueId();
    this.button = make("button", { class: "osl-player-play", disabled: count < 2, onclick: play });
    this.body = make(
      "div",
      { class: "osl-grow", style: `--osl-count: ${count}` },
      make("div", { class: "osl-row" }, make("label", { for: this.slider.id, class: "osl-title" }, name), this.value),
      make("div", { class: "osl-player-rail" }, this.slider),
    );
    this.node = make("div", { class: "osl-player-time" }, this.button, this.body);
    this.showPlaying(false);
  }

  show(value, text) {
    this.slider.value = value;
    set(this.slider, { "aria-valuetext": text });
    write(this.value, text);
  }

  showPlaying(playing) {
    write(this.button, playing ? "❚❚" : "▶");
    set(this.button, { "aria-label": playing ? "Pause" : `Play ${this.name.toLowerCase()}s`, "aria-pressed": `${playing}` });
  }
}

/** The frame mask of a step, under the frame slider: a block for each run of frames with the same ratio. */
function drawMask(node, track, index, frame, number, masks) {
  const [loop] = track.steps[index];
  const ratios = track.ratios[loop];
  const active = track.active[index];
  const key = `${loop} ${active} ${frame}`;
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  const blocks = [];
  ratios.forEach((ratio, i) => {
    const last = blocks.at(-1);
    if (last && last.ratio === ratio && active[last.from] === active[i]) last.to = i;
    else blocks.push({ ratio, from: i, to: i });
  });
  const words = ({ ratio, from, to }) => {
    const where = from === to ? frameName(track, from) : `${track.unit}s ${from} to ${to}`;
    return `${where} ${nameOf(ratio)}${active[from] === "1" ? "" : ", waiting"}`;
  };
  set(node, { "aria-label": `${masks > 1 ? `${"AB"[number]}: ` : ""}frame mask: ${blocks.map(words).join("; ")}` });
  node.replaceChildren(
    ...blocks.map((block) => {
      const waits = active[block.from] !== "1";
      const text = `${MASK_LETTERS[kindOf(block.ratio)]} ${nameOf(block.ratio).replace("edited ", "")}${waits ? ", waits" : ""}`;
      return make(
        "span",
        { style: `flex-grow: ${block.to - block.from + 1}`, "data-kind": kindOf(block.ratio), title: words(block) },
        text,
      );
    }),
    make("i", { style: `left: ${(100 * frame) / ratios.length}%; width: ${100 / ratios.length}%` }),
  );
}

/** The film strip of a trace: a listbox of its steps. */
class Film {
  constructor(track, number, tracks, go) {
    this.count = track.steps.length;
    this.active = track.active;
    this.waits = track.active.some((frames) => frames.includes("0")) || null; // whether any frame waits at any step
    this.at = 0;
    this.drawings = 0;
    this.cells = track.steps.map(([loop, step, timestep], i) => {
      const canvas = make("canvas", { class: "osl-pixels", width: 1, height: 1, style: `aspect-ratio: ${track.shape[3]} / ${track.shape[2]}` });
      const name = track.captions.length > 1 ? `loop ${loop}, ` : "";
      const begins = i > 0 && loop !== track.steps[i - 1][0];
      const attributes = {
        role: "option",
        id: uniqueId(),
        class: begins ? "osl-player-begins" : "",
        "aria-label": `${name}step ${step}, t = ${timestep}`,
        onclick: () => go(i),
      };
      const waits = this.waits && make("span", {});
      return { canvas, waits, node: make("div", attributes, canvas, make("span", { class: "osl-number" }, `t ${timestep}`), waits) };
    });
    this.list = make(
      "div",
      { class: "osl-player-film", role: "listbox", tabindex: 0, "aria-orientation": "horizontal", "aria-label": `Film strip${number ? " of the second trace" : ""}` },
      this.cells.map((cell) => cell.node),
    );
    const name = tracks > 1 ? make("span", { class: "osl-title" }, "AB"[number]) : null;
    this.node = make("div", { class: "osl-player-filmrow" }, name, this.list);
    this.list.addEventListener("keydown", (event) => {
      const next = walk(event, this.at, this.count);
      if (next !== null) go(next);
    });
  }

  /** Draw the strip, whose tiles are the cells. */
  async draw(bytes) {
    if (!bytes.byteLength) return;
    const drawing = ++this.drawings;
    const bitmap = await createImageBitmap(new Blob([bytes]));
    if (drawing !== this.drawings) return;
    this.cells.forEach(({ canvas }, i) => drawTile(canvas, bitmap, i, this.count));
  }

  /** Mark the step and frame shown, and the steps that have a picture ("0110…"). */
  mark(at, have, frame) {
    this.at = at;
    this.cells.forEach(({ node, waits }, i) => {
      set(node, { "aria-selected": `${i === at}`, "data-empty": have[i] === "0" });
      if (waits) write(waits, this.active[i][frame] === "0" ? "waits" : "\u00a0");
    });
    const { node } = this.cells[at];
    set(this.list, { "aria-activedescendant": node.id });
    const [left, right] = [node.offsetLeft, node.offsetLeft + node.offsetWidth];
    const { scrollLeft, clientWidth } = this.list;
    if (left < scrollLeft) this.list.scrollLeft = left - node.offsetWidth;
    else if (right > scrollLeft + clientWidth) this.list.scrollLeft = right + node.offsetWidth - clientWidth;
  }
}

// ------------------------------------------------------------------------------------------------------ small parts

/** Radio buttons side by side. options: [value, text]. silent: the name is for screen readers only. */
class Choice {
  constructor(name, options, pick, silent = false) {
    const group = uniqueId();
    this.inputs = new Map();
    const items = options.map(([value, text]) => {
      const input = make("input", { type: "radio", name: group, value, onchange: () => pick(value) });
      this.inputs.set(value, input);
      const words = make("span", {});
      showSymbols(words, text);
      return make("label", {}, input, words);
    });
    const title = make("span", { class: silent ? "osl-hidden" : "osl-label", id: `${group}-title` }, name);
    this.node = make("div", { class: "osl-row", role: "radiogroup", "aria-labelledby": title.id }, title, make("div", { class: "osl-player-choice" }, items));
  }

  show(value) {
    this.inputs.get(value).checked = true;
  }

  /** Disable options. reasons: value -> why it can't be chosen. */
  disable(reasons) {
    for (const [value, input] of this.inputs) {
      input.disabled = value in reasons;
      set(input.parentNode, { title: reasons[value] });
    }
  }
}

/** "frame 3", or "latent frame 3 (frames 9–12)" */
function frameName(track, frame) {
  return `${track.unit} ${frame}${track.held[frame]}`;
}

/** The bytes of "picture" or "strip" of the first or second trace. */
function bytesOf(model, name, number) {
  return model.get(number ? `compare_${name}` : name);
}

function nameOf(ratio) {
  return kindOf(ratio) === "edited" ? `edited ${Math.round(100 * ratio)} %` : kindOf(ratio);
}

/** Write a text with x_t and x_0 as symbols with subscripts. */
function showSymbols(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(...text.split(/\b(x_[t0])/).map((part) => (/^x_[t0]$/.test(part) ? symbol(part) : part)));
}

function symbol(part) {
  return make("span", { class: "osl-player-symbol" }, "x", make("sub", {}, part[2]));
}

function sentence(text) {
  return `${/^[a-z]{2}/.test(text) ? text[0].toUpperCase() : text[0]}${text.slice(1)}.`;
}
