// AttentionView. The traits from `step` to `opacity` are what is chosen; Python computes, and what it found for them
// arrives in one piece as `answer`. The page chooses and paints, and calculates nothing but the length of a bar.

const PATIENCE = 4000; // ms without an answer, after which the page says that there is no kernel

const LEGENDS = {
  words: "bars: how much the chosen place looks at them; dashed: if evenly",
  frames: "bars: how much the chosen place looks at itself in them",
  places: "heat: how much it looks at each place of its frame",
};

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const sum = (values) => values.reduce((a, b) => a + b, 0);

function render({ model, el }) {
  el.classList.add("osl", "osl-attention");
  keepKeys(el);
  const view = new Attention(model, el);
  const ends = [
    follow(model, ["step", "joined"], () => view.drawCaption()),
    follow(model, ["film"], () => view.drawFilm()),
    follow(model, ["step", "block", "head", "joined", "picture", "opacity", "word", "place"], () => view.drawChoices()),
    follow(model, ["answer"], () => view.drawAnswer()),
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
    this.about = model.get("about");
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
    const { steps, blocks, heads, grid, extent } = this.about;
    const [frames, h, w] = grid;

    this.step = make("input", { type: "range", min: 0, max: steps.length - 1, disabled: steps.length === 1 });
    this.step.addEventListener("input", () => this.choose({ step: Number(this.step.value) }));
    this.stepName = make("span", { class: "osl-number osl-attention-step" });
    this.block = this.select(blocks.map((block) => [block, `${block}`]), "block");
    const headNames = Array.from({ length: heads }, (_, head) => [head, `${head}`]);
    this.head = this.select([["", `mean of ${heads}`], ...headNames], "head");

    this.joined = make("input", { type: "checkbox", onchange: () => this.choose({ joined: this.joined.checked }) });
    this.caption = make("div", {
      class: "osl-attention-caption",
      role: "listbox",
      "aria-label": "Words of the caption",
      "aria-multiselectable": "true",
      "aria-orientation": "horizontal",
      onkeydown: (event) => this.walkCaption(event),
    });

    const pictures = [["last", "last step"], ["step", "this step"]];
    this.picture = this.select(pictures, "picture");
    this.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
    this.opacity.addEventListener("input", () => this.choose({ opacity: Number(this.opacity.value) }));
    this.heatKey = this.key();
    this.heatSaid = make("p");

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
      "aria-label": "Places of the frame",
      "aria-rowcount": h,
      "aria-colcount": w,
      onkeydown: (event) => this.walkPlaces(event),
      onclick: (event) => this.choosePlace(event, this.get("place")[0], this.large),
    });
    this.placeName = make("span");
    this.placesKey = this.key();
    this.legends = {};
    for (const name in LEGENDS) this.legends[name] = make("span", { class: "osl-label osl-grow" });
    this.said = Object.fromEntries(Object.keys(LEGENDS).map((name) => [name, make("span")]));

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
            labelled("whole words", this.joined),
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
          make("div", { class: "osl-row osl-attention-legend" }, this.heatKey.key, this.heatSaid),
          this.strip,
        ),
        make(
          "section",
          { class: "osl-panel osl-attention-place" },
          this.large.screen,
          make(
            "div",
            { class: "osl-stack osl-grow" },
            title("Place: ", this.placeName),
            this.legends.places,
            this.placesKey.key,
            make(
              "div",
              { class: "osl-attention-looks" },
              Object.entries(this.said).flatMap(([name, said]) => [make("span", { class: "osl-label" }, name), said]),
            ),
          ),
        ),
        this.notice,
      ),
      this.status,
    );
  }

  select(options, name) {
    const select = make(
      "select",
      {},
      options.map(([value, text]) => make("option", { value }, text)),
    );
    const read = { block: Number, head: (value) => (value === "" ? null : Number(value)), picture: String }[name];
    select.addEventListener("change", () => this.choose({ [name]: read(select.value) }));
    return select;
  }

  /** A picture with the heat above it. */
  screen() {
    const [, h, w] = this.about.grid;
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
        onclick: (event) => this.choosePlace(event, number, parts),
      },
      parts.screen,
      bar.box,
      make("span", { class: "osl-row osl-number" }, make("span", { class: "osl-label" }, `${number}`), bar.number),
    );
    return { ...parts, option, bar };
  }

  /** What the colours of a heat mean, from 0 to its largest value, above black and above white as above a picture. */
  key() {
    const scale = make("canvas", { class: "osl-attention-heat", width: 256, height: 1 });
    const most = make("span", { class: "osl-number" });
    this.paint(scale, Float32Array.from({ length: 256 }, (_, i) => i), 256);
    const bar = make("span", { class: "osl-attention-scale", "aria-hidden": "true" }, scale);
    return { most, key: make("span", { class: "osl-row osl-attention-key" }, make("span", {}, "0%"), bar, most) };
  }

  // ------------------------------------------------------------------------------------------- the choices

  choosePlace(event, frame, { heat, option }) {
    const [, h, w] = this.about.grid;
    const box = heat.getBoundingClientRect();
    const row = clamp(Math.floor(((event.clientY - box.top) / box.height) * h), 0, h - 1);
    const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * w), 0, w - 1);
    const below = event.clientY > box.bottom && option; // the bar of a frame: the same place there
    const [, ownRow, ownColumn] = this.get("place");
    this.choose({ place: below ? [frame, ownRow, ownColumn] : [frame, row, column] });
    (option ?? this.cell).focus();
  }

  walkPlaces(event) {
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
    const place = this.get("place").map((value, axis) => clamp(value + move[axis], 0, this.about.grid[axis] - 1));
    this.choose({ place });
  }

  walkFrames(event) {
    const [frame, row, column] = this.get("place");
    const next = walk(event, frame, this.frames.length);
    if (next === null) return;
    this.choose({ place: [next, row, column] });
    this.frames[next].option.focus();
  }

  walkCaption(event) {
    const next = walk(event, this.chips.indexOf(event.target.closest("[role=option]")), this.chips.length);
    if (next === null) return;
    this.chooseWord(next, event.shiftKey);
    this.chips[next].focus();
  }

  /** A word alone, or together with those that are chosen; then a second time takes it away. */
  chooseWord(index, more) {
    const word = this.words[index];
    const chosen = new Set(more ? this.get("word") : []);
    const taken = more && word.every((piece) => chosen.has(piece)) && chosen.size > word.length;
    word.forEach((piece) => (taken ? chosen.delete(piece) : chosen.add(piece)));
    this.choose({ word: [...chosen].sort((a, b) => a - b) });
  }

  // -------------------------------------------------------------------------------------------- the painting

  drawCaption() {
    const { pieces, words } = this.about.captions[this.about.steps[this.get("step")].loop];
    const joined = this.get("joined");
    const shown = JSON.stringify([pieces, joined]);
    if (this.shownCaption === shown) return;
    this.shownCaption = shown;
    this.pieces = pieces;
    this.words = joined ? words : pieces.map((_, i) => [i]);
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

  /** In a word the mark of its beginning is left out, unless it is a piece of its own. */
  pieceText(piece, word) {
    const text = this.pieces[piece];
    return word.length > 1 || this.get("joined") ? text.replace(/^▁(?=.)/, "") : text;
  }

  drawChoices() {
    if (!this.chips) return;
    const { steps, captions } = this.about;
    const step = steps[this.get("step")];
    const [frame, row, column] = this.get("place");
    const word = this.get("word");

    const loop = captions.length > 1 ? `loop ${step.loop + 1}, ` : "";
    this.step.value = this.get("step");
    set(this.step, { "aria-valuetext": `${loop}step ${step.number}` });
    write(this.stepName, `${loop}${step.number}, t = ${step.timestep}`);
    this.block.value = this.get("block");
    this.head.value = this.get("head") ?? "";
    this.picture.value = this.get("picture");
    this.opacity.value = this.get("opacity");
    set(this.opacity, { "aria-valuetext": `${Math.round(100 * this.get("opacity"))}%` });
    this.joined.checked = this.get("joined");
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
    const [tall, wide] = this.about.extent;
    for (const mark of [this.mark, this.cell])
      Object.assign(mark.style, {
        left: `${(100 * column) / wide}%`,
        top: `${(100 * row) / tall}%`,
        width: `${100 / wide}%`,
        height: `${100 / tall}%`,
      });
    write(this.placeName, `frame ${frame}, row ${row}, column ${column}`);
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
    if (bytes !== this.get("film")) return; // another one has come meanwhile
    this.film = film;
    this.frames.forEach(({ picture }, frame) => this.drawPicture(picture, frame));
    this.drawLarge();
  }

  drawPicture(canvas, frame) {
    if (!this.film) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    canvas.width = this.film.width;
    canvas.height = this.film.height / this.frames.length;
    canvas.getContext("2d").drawImage(this.film, 0, -frame * canvas.height);
  }

  drawLarge() {
    this.drawPicture(this.large.picture, this.get("place")[0]);
  }

  drawAnswer() {
    const { heat, places, said, of } = this.get("answer");
    const [, h, w] = this.about.grid;
    const looks = floats(heat);
    const most = looks && Math.max(...looks);
    this.frames.forEach((frame, i) => this.paint(frame.heat, looks?.subarray(i * h * w, (i + 1) * h * w), most));
    const around = floats(places);
    this.paint(this.large.heat, around, around && Math.max(...around));
    for (const [key, values] of [[this.heatKey, looks], [this.placesKey, around]]) {
      key.key.style.visibility = values ? "visible" : "hidden";
      write(key.most, values ? percent(Math.max(...values)) : "");
    }
    write(this.heatSaid, said.heat);
    for (const name in this.said) {
      write(this.said[name], said[name]);
      write(this.legends[name], this.get("answer")[name] ? LEGENDS[name] : said[name]);
    }
    this.drawBars();
    this.announce(of, said);
    this.wait();
  }

  drawBars() {
    const answer = this.get("answer");
    if (!answer.of || answer.of.joined !== this.get("joined")) return;
    const { words, frames } = answer;
    const shares = words && this.words.map((word) => sum(word.map((piece) => words[piece])));
    const evens = this.words.map((word) => word.length / this.pieces.length);
    const most = shares && Math.max(...shares, ...evens);
    this.bars.forEach((bar, i) => bar.draw(shares?.[i], evens[i], most));
    this.chips.forEach((chip, i) => {
      const name = this.words[i].map((piece) => this.pieces[piece]).join("").replaceAll("▁", " ").trim() || "▁";
      set(chip, { "aria-label": shares ? `${name}, ${percent(shares[i])}` : name });
    });
    const even = 1 / this.frames.length;
    const mostOfFrames = frames && Math.max(...frames, even);
    this.frames.forEach(({ bar, option }, i) => {
      bar.draw(frames?.[i], even, mostOfFrames);
      set(option, { "aria-label": frames ? `frame ${i}, ${percent(frames[i])}` : `frame ${i}` });
    });
  }

  /** Paint values 0 … most into a canvas of one pixel for each of them; without values, nothing. The smaller a value,
   *  the more it lets the picture shine through, down to three quarters. */
  paint(canvas, values, most) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!values) return;
    const colors = this.about.colors;
    const image = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      const color = 3 * clamp(Math.floor((256 * value) / most), 0, 255);
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = colors.getUint8(color + c);
      image.data[4 * i + 3] = 64 + (191 * value) / most;
    });
    context.putImageData(image, 0, 0);
  }

  /** Say what the last choice has brought, to those who do not see the heat. */
  announce(of, said) {
    const before = this.announced;
    this.announced = of;
    if (!before) return;
    const changed = (...names) => names.some((name) => JSON.stringify(before[name]) !== JSON.stringify(of[name]));
    const place = `Frame ${of.place[0]}, row ${of.place[1]}, column ${of.place[2]}`;
    const looks = `${place}: words ${said.words}; frames ${said.frames}; places ${said.places}.`;
    if (changed("place")) write(this.status, looks);
    else if (changed("word")) write(this.status, `${said.heat}.`);
    else if (changed("step", "block", "head")) write(this.status, `${said.heat}. ${looks}`);
  }

  /** Until the answer is that to the present choices the page is busy; if none comes, it says so and looks not dead. */
  wait() {
    const { of } = this.get("answer");
    const answered = of && Object.keys(of).every((name) => JSON.stringify(of[name]) === JSON.stringify(this.get(name)));
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

/** A bar with its number, and a line where it would be if all were looked at evenly. */
class Bar {
  constructor() {
    this.bar = make("div", { class: "osl-attention-bar" });
    this.even = make("div", { class: "osl-attention-even" });
    this.box = make("div", { class: "osl-attention-bars", "aria-hidden": "true" }, this.bar, this.even);
    this.number = make("span", { class: "osl-number osl-attention-number" });
  }

  draw(share, even, most) {
    const known = share !== undefined;
    this.bar.style.height = known ? `${(100 * share) / most}%` : 0;
    this.even.style.bottom = known ? `${(100 * even) / most}%` : 0;
    this.even.hidden = !known;
    write(this.number, known ? (share < 0.0995 ? percent(share) : `${Math.round(100 * share)}%`) : "–");
  }
}

/** Where the arrow keys lead in a list of options; null for other keys. */
function walk(event, index, count) {
  const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -count, End: count };
  if (!(event.key in moves)) return null;
  event.preventDefault();
  return clamp(index + moves[event.key], 0, count - 1);
}

/** The float32 numbers of bytes that Python sent; null for none. */
function floats(bytes) {
  return bytes ? new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)) : null;
}
