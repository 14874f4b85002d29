// AttentionView. The traits from `step` to `opacity` are the user's choices. Python computes the weights for them and
// sends them as `result`; the page draws.

const PATIENCE = 4000; // milliseconds without an answer before the page says so

const LEGENDS = {
  words: "bars: attention of the chosen position to each word; dashed: uniform",
  frames: "bars: attention of the chosen position to the same position in each frame",
  positions: "heat: attention of the chosen position to each position of its frame",
};

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const sum = (values) => values.reduce((a, b) => a + b, 0);

function render({ model, el }) {
  el.classList.add("osl", "osl-attention");
  keepKeys(el);
  const view = new Attention(model, el);
  const ends = [
    follow(model, ["step", "whole_words"], () => view.drawCaption()),
    follow(model, ["film"], () => view.drawFilm()),
    follow(model, ["step", "block", "head", "whole_words", "picture", "opacity", "word", "position"], () => view.drawChoices()),
    follow(model, ["result"], () => view.drawResult()),
  ];
  return () => {
    clearTimeout(view.waiting);
    ends.forEach((end) => end());
  };
}

export default { render };

class Attention {
  constructor(model, el) {
    this.model = model;
    this.plan = model.get("plan");
    this.build(el);
  }

  get(name) {
    return this.model.get(name);
  }

  choose(choices) {
    send(this.model, choices);
  }

  // ---------------------------------------------------------------------------------------------- the page

  build(el) {
    this.root = el;
    const { steps, blocks, heads, grid, extent } = this.plan;
    const [frames, h, w] = grid;

    this.step = make("input", { type: "range", min: 0, max: steps.length - 1, disabled: steps.length === 1 });
    this.step.addEventListener("input", () => this.choose({ step: Number(this.step.value) }));
    this.stepName = make("span", { class: "osl-number osl-attention-step" });
    this.block = selectOf(blocks.map((block) => [block, block]), (value) => this.choose({ block: Number(value) }));
    const headNames = Array.from({ length: heads }, (_, head) => [head, head]);
    const chooseHead = (value) => this.choose({ head: value === "" ? null : Number(value) });
    this.head = selectOf([["", `mean of ${heads}`], ...headNames], chooseHead);

    this.wholeWords = make("input", { type: "checkbox", onchange: () => this.choose({ whole_words: this.wholeWords.checked }) });
    this.caption = make("div", {
      class: "osl-attention-caption",
      role: "listbox",
      "aria-label": "Words of the caption",
      "aria-multiselectable": "true",
      "aria-orientation": "horizontal",
      onkeydown: (event) => this.walkCaption(event),
    });

    this.picture = selectOf([["last", "last step"], ["step", "this step"]], (picture) => this.choose({ picture }));
    this.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
    this.opacity.addEventListener("input", () => this.choose({ opacity: Number(this.opacity.value) }));
    this.heatKey = this.key();
    this.heatSummary = make("p");

    this.frames = Array.from({ length: frames }, (_, frame) => this.frame(frame));
    this.strip = make(
      "div",
      {
        class: "osl-attention-strip",
        role: "listbox",
        "aria-label": "Frames",
        "aria-orientation": "horizontal",
        style: `--frames: ${frames}`,
        onkeydown: (event) => this.walkFrames(event),
      },
      this.frames.map(({ option }) => option),
    );

    this.large = this.screen();
    this.cell = make("div", { role: "gridcell", tabindex: 0, class: "osl-attention-mark", "aria-selected": "true" });
    this.large.screen.append(make("div", { role: "row" }, this.cell));
    set(this.large.screen, {
      role: "grid",
      "aria-label": "Positions of the frame",
      "aria-rowcount": h,
      "aria-colcount": w,
      onkeydown: (event) => this.walkPositions(event),
      onclick: (event) => this.choosePosition(event, this.get("position")[0], this.large),
    });
    this.positionName = make("span");
    this.positionsKey = this.key();
    this.legends = {};
    for (const name in LEGENDS) this.legends[name] = make("span", { class: "osl-label osl-grow" });
    this.summaries = Object.fromEntries(Object.keys(LEGENDS).map((name) => [name, make("span")]));

    this.notice = make("p", { class: "osl-error osl-attention-notice" });
    this.status = announcer();
    const title = (...children) => make("h3", { class: "osl-title" }, ...children);
    el.style.setProperty("--heat-width", `${(100 * w) / extent[1]}%`);
    el.style.setProperty("--shape", `${extent[1]} / ${extent[0]}`);
    el.append(
      make(
        "div",
        { class: "osl-stack" },
        make(
          "div",
          { class: "osl-row osl-attention-source" },
          labelled("Step", this.step, { class: "osl-row osl-attention-slider" }),
          this.stepName,
          labelled("Block", this.block),
          labelled("Head", this.head),
        ),
        make(
          "section",
          { class: "osl-panel osl-stack" },
          make(
            "div",
            { class: "osl-row" },
            title("Words"),
            this.legends.words,
            labelled("whole words", this.wholeWords),
          ),
          this.caption,
        ),
        make(
          "section",
          { class: "osl-panel osl-stack" },
          make(
            "div",
            { class: "osl-row" },
            title("Frames"),
            this.legends.frames,
            labelled("Picture", this.picture),
            labelled("Heat", this.opacity, { class: "osl-row osl-attention-opacity" }),
          ),
          make("div", { class: "osl-row osl-attention-legend" }, this.heatKey.key, this.heatSummary),
          this.strip,
        ),
        make(
          "section",
          { class: "osl-panel osl-attention-position" },
          this.large.screen,
          make(
            "div",
            { class: "osl-stack osl-grow" },
            title("Position: ", this.positionName),
            this.legends.positions,
            this.positionsKey.key,
            make(
              "div",
              { class: "osl-attention-summaries" },
              Object.entries(this.summaries).flatMap(([name, text]) => [make("span", { class: "osl-label" }, name), text]),
            ),
          ),
        ),
        this.notice,
      ),
      this.status,
    );
  }

  /** A picture under a layer of heat. */
  screen() {
    const [, h, w] = this.plan.grid;
    const picture = make("canvas", { class: "osl-attention-picture", "aria-hidden": "true" });
    const heat = make("canvas", { class: "osl-attention-heat", width: w, height: h, "aria-hidden": "true" });
    return { picture, heat, screen: make("div", { class: "osl-attention-screen" }, picture, heat) };
  }

  frame(number) {
    const parts = this.screen();
    const bar = new Bar();
    const option = make(
      "div",
      {
        class: "osl-attention-frame",
        role: "option",
        "data-frame": number,
        onclick: (event) => this.choosePosition(event, number, parts),
      },
      parts.screen,
      bar.box,
      make("span", { class: "osl-row osl-number" }, make("span", { class: "osl-label" }, `${number}`), bar.number),
    );
    return { ...parts, option, bar };
  }

  /** The colour scale of the heat, from 0 to its largest value, over black and over white. */
  key() {
    const scale = make("canvas", { class: "osl-attention-heat", width: 256, height: 1 });
    const most = make("span", { class: "osl-number" });
    this.paint(scale, Float32Array.from({ length: 256 }, (_, i) => i), 256);
    const bar = make("span", { class: "osl-attention-scale", "aria-hidden": "true" }, scale);
    return { most, key: make("span", { class: "osl-row osl-attention-key" }, make("span", {}, "0%"), bar, most) };
  }

  // ------------------------------------------------------------------------------------------- the choices

  choosePosition(event, frame, { heat, option }) {
    const [, h, w] = this.plan.grid;
    const box = heat.getBoundingClientRect();
    const row = clamp(Math.floor(((event.clientY - box.top) / box.height) * h), 0, h - 1);
    const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * w), 0, w - 1);
    const below = event.clientY > box.bottom && option; // on the bar of a frame: keep row and column
    const [, ownRow, ownColumn] = this.get("position");
    this.choose({ position: below ? [frame, ownRow, ownColumn] : [frame, row, column] });
    (option ?? this.cell).focus();
  }

  walkPositions(event) {
    const moves = {
      ArrowUp: [0, -1, 0],
      ArrowDown: [0, 1, 0],
      ArrowLeft: [0, 0, -1],
      ArrowRight: [0, 0, 1],
      PageUp: [-1, 0, 0],
      PageDown: [1, 0, 0],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const position = this.get("position").map((value, axis) => clamp(value + move[axis], 0, this.plan.grid[axis] - 1));
    this.choose({ position });
  }

  walkFrames(event) {
    const [frame, row, column] = this.get("position");
    const next = walk(event, frame, this.frames.length);
    if (next === null) return;
    this.choose({ position: [next, row, column] });
    this.frames[next].option.focus();
  }

  walkCaption(event) {
    const next = walk(event, this.chips.indexOf(event.target.closest("[role=option]")), this.chips.length);
    if (next === null) return;
    this.chooseWord(next, event.shiftKey);
    this.chips[next].focus();
  }

  /** Choose a word; with `more`, add it to the chosen words or remove it. */
  chooseWord(index, more) {
    const word = this.words[index];
    const chosen = new Set(more ? this.get("word") : []);
    const taken = more && word.every((piece) => chosen.has(piece)) && chosen.size > word.length;
    word.forEach((piece) => (taken ? chosen.delete(piece) : chosen.add(piece)));
    this.choose({ word: [...chosen].sort((a, b) => a - b) });
  }

  // -------------------------------------------------------------------------------------------- drawing

  drawCaption() {
    const { pieces, words } = this.plan.captions[this.plan.steps[this.get("step")].loop];
    const wholeWords = this.get("whole_words");
    const shown = JSON.stringify([pieces, wholeWords]);
    if (this.shownCaption === shown) return;
    this.shownCaption = shown;
    this.pieces = pieces;
    this.words = wholeWords ? words : pieces.map((_, i) => [i]);
    this.bars = this.words.map(() => new Bar());
    this.chips = this.words.map((word, index) =>
      make(
        "div",
        {
          class: "osl-attention-word",
          role: "option",
          onclick: (event) => {
            this.chooseWord(index, event.shiftKey || event.ctrlKey || event.metaKey);
            this.chips[index].focus();
          },
        },
        this.bars[index].box,
        this.bars[index].number,
        make(
          "span",
          { class: "osl-attention-pieces" },
          word.map((piece) => make("span", { "data-piece": piece }, this.pieceText(piece, word))),
        ),
      ),
    );
    this.caption.replaceChildren(...this.chips);
    this.drawChoices();
    this.drawBars();
  }

  /** A piece as text; the ▁ that starts a word is left out, unless it is the whole piece. */
  pieceText(piece, word) {
    const text = this.pieces[piece];
    return word.length > 1 || this.get("whole_words") ? text.replace(/^▁(?=.)/, "") : text;
  }

  drawChoices() {
    if (!this.chips) return;
    const { steps, captions } = this.plan;
    const step = steps[this.get("step")];
    const [frame, row, column] = this.get("position");
    const word = this.get("word");

    const loop = captions.length > 1 ? `loop ${step.loop + 1}, ` : "";
    this.step.value = this.get("step");
    set(this.step, { "aria-valuetext": `${loop}step ${step.number}` });
    write(this.stepName, `${loop}${step.number}, t = ${step.timestep}${step.reused ? ", reused the previous output" : ""}`);
    this.block.value = this.get("block");
    this.head.value = this.get("head") ?? "";
    this.picture.value = this.get("picture");
    this.opacity.value = this.get("opacity");
    set(this.opacity, { "aria-valuetext": `${Math.round(100 * this.get("opacity"))}%` });
    this.wholeWords.checked = this.get("whole_words");
    this.root.style.setProperty("--heat", this.get("opacity"));
    this.root.classList.toggle("osl-attention-heated", this.get("opacity") > 0);

    const first = this.words.findIndex((pieces) => pieces.some((piece) => word.includes(piece)));
    this.chips.forEach((chip, i) => {
      set(chip, {
        "aria-selected": `${this.words[i].some((piece) => word.includes(piece))}`,
        tabindex: i === Math.max(first, 0) ? 0 : -1,
      });
      for (const piece of chip.querySelectorAll("[data-piece]"))
        piece.classList.toggle("osl-on", word.includes(Number(piece.dataset.piece)));
    });
    this.frames.forEach(({ option, screen }, i) => {
      set(option, { "aria-selected": `${i === frame}`, tabindex: i === frame ? 0 : -1 });
      if (i === frame) screen.append((this.mark ??= make("div", { class: "osl-attention-mark" })));
    });
    const [tall, wide] = this.plan.extent;
    for (const mark of [this.mark, this.cell])
      Object.assign(mark.style, {
        left: `${(100 * column) / wide}%`,
        top: `${(100 * row) / tall}%`,
        width: `${100 / wide}%`,
        height: `${100 / tall}%`,
      });
    write(this.positionName, `frame ${frame}, row ${row}, column ${column}`);
    set(this.cell, {
      "aria-rowindex": row + 1,
      "aria-colindex": column + 1,
      "aria-label": `row ${row}, column ${column}`,
    });
    this.drawLarge();
    this.wait();
  }

  async drawFilm() {
    const bytes = this.get("film");
    const film = bytes?.byteLength ? await createImageBitmap(new Blob([bytes])) : null;
    if (bytes !== this.get("film")) return; // a newer one has arrived
    this.film = film;
    this.frames.forEach(({ picture }, frame) => this.drawPicture(picture, frame));
    this.drawLarge();
  }

  drawPicture(canvas, frame) {
    if (this.film) drawTile(canvas, this.film, frame, this.frames.length, true);
    else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }

  drawLarge() {
    this.drawPicture(this.large.picture, this.get("position")[0]);
  }

  drawResult() {
    const result = this.get("result");
    const { summary, choices } = result;
    const [, h, w] = this.plan.grid;
    const heat = floats(result.heat);
    const most = heat && Math.max(...heat);
    this.frames.forEach((frame, i) => this.paint(frame.heat, heat?.subarray(i * h * w, (i + 1) * h * w), most));
    const positions = floats(result.positions);
    this.paint(this.large.heat, positions, positions && Math.max(...positions));
    for (const [key, values] of [[this.heatKey, heat], [this.positionsKey, positions]]) {
      key.key.style.visibility = values ? "visible" : "hidden";
      write(key.most, values ? percent(Math.max(...values)) : "");
    }
    write(this.heatSummary, summary.heat);
    for (const name in this.summaries) {
      write(this.summaries[name], summary[name]);
      write(this.legends[name], result[name] ? LEGENDS[name] : summary[name]);
    }
    this.drawBars();
    this.announce(choices, summary);
    this.wait();
  }

  drawBars() {
    const { choices, words, frames } = this.get("result");
    if (choices?.whole_words !== this.get("whole_words")) return;
    const shares = words && this.words.map((word) => sum(word.map((piece) => words[piece])));
    const uniform = this.words.map((word) => word.length / this.pieces.length);
    const most = shares && Math.max(...shares, ...uniform);
    this.bars.forEach((bar, i) => bar.draw(shares?.[i], uniform[i], most));
    this.chips.forEach((chip, i) => {
      const name = this.words[i].map((piece) => this.pieces[piece]).join("").replaceAll("▁", " ").trim() || "▁";
      set(chip, { "aria-label": shares ? `${name}, ${percent(shares[i])}` : name });
    });
    const each = 1 / this.frames.length;
    const mostOfFrames = frames && Math.max(...frames, each);
    this.frames.forEach(({ bar, option }, i) => {
      bar.draw(frames?.[i], each, mostOfFrames);
      set(option, { "aria-label": frames ? `frame ${i}, ${percent(frames[i])}` : `frame ${i}` });
    });
  }

  /** Paint values 0 … most into a canvas with one pixel for each; without values, clear it. The opacity rises with the
   *  value from a quarter to 1. */
  paint(canvas, values, most) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!values) return;
    const { colors } = this.plan;
    const image = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      const color = 3 * clamp(Math.floor((256 * value) / most), 0, 255);
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = colors.getUint8(color + c);
      image.data[4 * i + 3] = 64 + (191 * value) / most;
    });
    context.putImageData(image, 0, 0);
  }

  /** Announce the effect of the last choice to screen readers. */
  announce(choices, summary) {
    const before = this.announced;
    this.announced = choices;
    if (!before) return;
    const changed = (...names) => names.some((name) => JSON.stringify(before[name]) !== JSON.stringify(choices[name]));
    const [frame, row, column] = choices.position;
    const position = `Frame ${frame}, row ${row}, column ${column}: words ${summary.words}; frames ${summary.frames}; positions ${summary.positions}.`;
    if (changed("position")) write(this.status, position);
    else if (changed("word")) write(this.status, `${summary.heat}.`);
    else if (changed("step", "block", "head")) write(this.status, `${summary.heat}. ${position}`);
  }

  /** The page is busy until the result for the current choices arrives; after PATIENCE it says that none came. */
  wait() {
    const { choices } = this.get("result");
    const answered = choices && Object.keys(choices).every((name) => JSON.stringify(choices[name]) === JSON.stringify(this.get(name)));
    set(this.root, { "aria-busy": answered ? null : "true" });
    if (answered) {
      clearTimeout(this.waiting);
      this.waiting = undefined;
      write(this.notice, "");
    } else {
      this.waiting ??= setTimeout(
        () => write(this.notice, "No answer from Python: the kernel is busy, has failed, or is not running."),
        PATIENCE,
      );
    }
  }
}

/** A bar with its value, and a dashed line at the value of uniform attention. */
class Bar {
  constructor() {
    this.bar = make("div", { class: "osl-attention-bar" });
    this.uniform = make("div", { class: "osl-attention-uniform" });
    this.box = make("div", { class: "osl-attention-bars", "aria-hidden": "true" }, this.bar, this.uniform);
    this.number = make("span", { class: "osl-number osl-attention-number" });
  }

  draw(share, uniform, most) {
    const known = share !== undefined;
    this.bar.style.height = known ? `${(100 * share) / most}%` : 0;
    this.uniform.style.bottom = known ? `${(100 * uniform) / most}%` : 0;
    this.uniform.hidden = !known;
    write(this.number, known ? (share < 0.0995 ? percent(share) : `${Math.round(100 * share)}%`) : "–");
  }
}

/** The float32 values of a DataView; null for none. */
function floats(bytes) {
  return bytes ? new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)) : null;
}
