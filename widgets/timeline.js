// MaskTimeline. The page draws `state` and `clips`. Every change becomes the text of a strategy, is sent to Python as
// `draft`, and comes back as the next `state`. Only during a drag does the page draw a change by itself.

const STEP = 0.05; // of edit ratios

function render({ model, el }) {
  el.classList.add("osl", "osl-timeline");
  keepKeys(el);
  const view = new Timeline(model, el);
  const ends = [
    follow(model, ["clips", "state"], () => view.keepFocus(() => view.draw())),
    follow(model, ["draft", "error"], () => view.drawText()),
    follow(model, ["selected"], () => view.keepFocus(() => view.drawSelection())),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };

// ------------------------------------------------------------------------------------------------ segments

/** The text of a segment without trailing defaults. */
function textOf(segment) {
  const defaults = [0, 0, 0, 0, 1, 0];
  const { loop, reference, reference_start, target_start, length, edit_ratio } = segment;
  const values = [loop, reference, reference_start, target_start, length, Math.round(edit_ratio * 1000) / 1000];
  while (values.length > 1 && values.at(-1) === defaults[values.length - 1]) values.pop();
  return values.join(",");
}

/** "frame 3" or "frames 3–5"; of latent frames, whose `windows` are given, "latents 3–5 (frames 9–20)" */
function frames(start, length, windows = []) {
  const end = start + length - 1;
  const span = (noun, from, to) => (from === to ? `${noun} ${from}` : `${noun}s ${from}–${to}`);
  return windows.length ? `${span("latent", start, end)} (${span("frame", windows[start][0], windows[end][1])})` : span("frame", start, end);
}

function treatment(ratio) {
  return ratio === 0 ? "given" : `edited in the last ${Math.round(100 * ratio)} % of the steps`;
}

// ------------------------------------------------------------------------------------------------- the view

class Timeline {
  constructor(model, el) {
    this.model = model;
    this.picked = null; // selection in the palette: { reference, start, length, anchor, head }
    this.cursor = { loop: 0, frame: 0 }; // the cell in the tab order
    this.presets = make("div", { class: "osl-row", role: "group", "aria-label": "Presets" });
    this.undo = make("button", { onclick: () => model.send({ do: "undo" }), title: "Ctrl+Z" }, "Undo");
    this.redo = make("button", { onclick: () => model.send({ do: "redo" }), title: "Ctrl+Shift+Z" }, "Redo");
    this.palette = make("div", { class: "osl-stack" });
    this.rows = make("div", { class: "osl-scroll" });
    this.inspector = make("div", { class: "osl-panel osl-row osl-inspector", role: "group", "aria-label": "Selected segment" });
    this.field = make("input", { type: "text", class: "osl-grow osl-field", spellcheck: "false", autocomplete: "off" });
    this.error = make("div", { class: "osl-error", role: "alert" });
    this.explanation = make("pre", { class: "osl-code", tabindex: "0", "aria-label": "The strategy in plain English" });
    this.status = announcer();
    this.noise = noisePicture();

    this.field.addEventListener("input", () => this.typing());
    this.field.addEventListener("change", () => this.commitText(this.field.value));
    el.addEventListener("keydown", (event) => this.onKey(event));
    el.append(
      make("div", { class: "osl-row" }, this.presets, make("span", { class: "osl-grow" }), this.undo, this.redo),
      this.palette,
      make("div", { class: "osl-row" }, maskLegend(), this.state.windows.length ? make("span", { class: "osl-label" }, "Cells are latents; above each, the frames that it holds.") : ""),
      this.rows,
      this.inspector,
      labelled("Mask strategy", this.field),
      make("div", { class: "osl-words" }, this.error, this.explanation),
      this.status,
    );
    this.field.parentElement.classList.add("osl-strategy");
    set(this.error, { id: `${this.field.id}-error` });
    set(this.field, { "aria-describedby": this.error.id });
  }

  get state() {
    return this.model.get("state");
  }

  /** The references and the clips of earlier loops: { name, frames, thumbnails, from (the first loop to use it) }. */
  get sources() {
    const sources = this.model.get("clips").map((clip) => ({ ...clip, from: 0 }));
    for (let loop = 0; loop + 1 < this.state.loops; loop++) {
      const name = `${sources.length}: the clip of loop ${loop}`;
      sources.push({ name, frames: this.state.num_frames, windows: this.state.windows, thumbnails: [], from: loop + 1 });
    }
    return sources;
  }

  announce(text) {
    write(this.status, text);
  }

  // ---- changes

  /** Replace the segments; `selected` is the index of the edited one. */
  commit(segments, selected) {
    const draft = segments.map((s) => s.text ?? textOf(s)).join(";");
    if (draft === this.model.get("draft")) this.keepFocus(() => this.draw()); // no answer will come
    send(this.model, { selected, draft });
  }

  /** Change fields of one segment. */
  change(index, values) {
    const segments = this.state.segments.map((s, i) => (i === index ? { ...s, ...values, text: undefined } : s));
    this.commit(segments, index);
    const s = segments[index];
    this.announce(`Segment ${index + 1}: ${frames(s.target_start, s.length, this.state.windows)}, ${treatment(s.edit_ratio)}`);
  }

  add(segment) {
    this.commit([...this.state.segments, segment], this.state.segments.length);
    this.focusNext = `segment ${this.state.segments.length}`;
    const put = frames(segment.reference_start, segment.length, this.sources[segment.reference].windows);
    this.announce(`Put ${put} of reference ${segment.reference} on ${frames(segment.target_start, segment.length, this.state.windows)}`);
  }

  remove(index) {
    this.commit(this.state.segments.filter((_, i) => i !== index), -1);
    this.announce(`Segment ${index + 1} is deleted`);
    this.focusNext = `cell ${this.cursor.loop} ${this.cursor.frame}`;
  }

  /** The segment that puts a piece of a reference on a frame, cut to fit; null if the reference doesn't exist there. */
  placed({ reference, start, length }, loop, frame) {
    if (loop < this.sources[reference].from) return null;
    const target_start = clamp(frame, 0, this.state.num_frames - 1);
    const fitting = Math.min(length, this.state.num_frames - target_start);
    return { loop, reference, reference_start: start, target_start, length: fitting, edit_ratio: 0 };
  }

  /** A segment moved to another start, kept inside the video. */
  moved(segment, loop, target_start) {
    if (loop < this.sources[segment.reference].from) loop = segment.loop;
    return { ...segment, loop, target_start: clamp(target_start, 0, this.state.num_frames - segment.length) };
  }

  /** A segment with its end or start moved by some frames; its other frames don't change. */
  stretched(segment, edge, by) {
    const source = this.sources[segment.reference].frames;
    if (edge === "end") {
      const most = Math.min(source - segment.reference_start, this.state.num_frames - segment.target_start);
      return { ...segment, length: clamp(segment.length + by, 1, most) };
    }
    const least = -Math.min(segment.reference_start, segment.target_start);
    const shift = clamp(by, least, segment.length - 1);
    return {
      ...segment,
      reference_start: segment.reference_start + shift,
      target_start: segment.target_start + shift,
      length: segment.length - shift,
    };
  }

  // ---- text

  typing() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.model.send({ do: "check", text: this.field.value }), 150);
  }

  commitText(text) {
    clearTimeout(this.timer);
    if (text === this.model.get("draft")) this.model.send({ do: "check", text });
    else send(this.model, { draft: text });
  }

  drawText() {
    const draft = this.model.get("draft");
    const error = this.model.get("error");
    if (this.shownDraft !== draft) this.field.value = draft;
    this.shownDraft = draft;
    set(this.field, { "aria-invalid": error ? "true" : null });
    write(this.error, error);
  }

  // ---- drawing

  draw() {
    const { presets, can_undo, can_redo, explanation } = this.state;
    this.presets.replaceChildren(
      ...presets.map(({ name, text, missing }) =>
        make(
          "button",
          { disabled: missing !== "", title: missing || text || "no frame is given", onclick: () => this.commitText(text), "data-key": name },
          name,
        ),
      ),
    );
    this.undo.disabled = !can_undo;
    this.redo.disabled = !can_redo;
    this.drawPalette();
    this.drawRows();
    write(this.explanation, explanation);
    this.shownDraft = undefined; // so that a refused text is replaced
    this.drawText();
    this.drawSelection();
  }

  drawPalette() {
    const sources = this.sources;
    this.palette.replaceChildren(
      ...sources.map((source, reference) => {
        const unused = this.state.unused.includes(reference) && source.thumbnails.length;
        const strip = make("div", {
          class: "osl-strip",
          role: "listbox",
          "aria-label": `Frames of reference ${source.name}`,
          "aria-multiselectable": "true",
          "aria-orientation": "horizontal",
        });
        for (let frame = 0; frame < source.frames; frame++) strip.append(this.paletteFrame(source, reference, frame));
        return make(
          "div",
          { class: "osl-reference" },
          make("span", { class: "osl-name", title: source.name }, source.name, unused ? make("span", { class: "osl-label" }, " · not used") : ""),
          make("div", { class: "osl-scroll" }, strip),
        );
      }),
    );
    if (!sources.length) {
      this.palette.append(make("span", { class: "osl-label" }, "No references: all frames are generated. Give some as MaskTimeline(…, references=[…])."));
    }
    this.drawPicked();
  }

  paletteFrame(source, reference, frame) {
    return make(
      "div",
      {
        class: "osl-frame",
        role: "option",
        "aria-label": frames(frame, 1, source.windows),
        "data-reference": reference,
        "data-frame": frame,
        "data-key": `palette ${reference} ${frame}`,
        style: picture(source, frame),
        onpointerdown: (event) => this.pressPalette(event, reference, frame),
        onkeydown: (event) => this.onPaletteKey(event, reference, frame),
      },
      make("span", { class: "osl-count", "aria-hidden": "true" }, String(frame)),
    );
  }

  /** Mark the selection in the palette; its head (or the first frame of a reference) is in the tab order. */
  drawPicked() {
    const p = this.picked;
    for (const node of this.palette.querySelectorAll(".osl-frame")) {
      const [reference, frame] = [Number(node.dataset.reference), Number(node.dataset.frame)];
      const chosen = p && p.reference === reference && frame >= p.start && frame < p.start + p.length;
      set(node, { "aria-selected": String(Boolean(chosen)), tabindex: (p?.reference === reference ? frame === p.head : frame === 0) ? "0" : "-1" });
    }
  }

  drawRows() {
    const { num_frames, loops } = this.state;
    this.cursor = { loop: Math.min(this.cursor.loop, loops - 1), frame: Math.min(this.cursor.frame, num_frames - 1) };
    this.rows.replaceChildren(...Array.from({ length: loops }, (_, loop) => this.row(loop)));
  }

  row(loop) {
    const { num_frames, windows, loops, segments, taken_over } = this.state;
    const track = make("div", { class: "osl-track", role: "group", "aria-label": loops > 1 ? `Loop ${loop}` : "Frames of the video", "data-loop": loop });
    track.style.setProperty("--osl-frames", num_frames);
    const every = num_frames <= 24 ? 1 : num_frames <= 48 ? 2 : 4;
    for (let frame = 0; frame < num_frames; frame++) track.append(this.cell(loop, frame, frame % every === 0));
    segments.forEach((segment, index) => segment.loop === loop && track.append(this.segment(segment, index)));
    if (loop && taken_over) {
      track.append(
        make(
          "div",
          { class: "osl-taken", style: place(0, taken_over, num_frames), title: `the last ${taken_over} frames of loop ${loop - 1} are taken over` },
          "taken over",
        ),
      );
    }
    return make(
      "div",
      { class: "osl-loop" },
      loops > 1 ? make("span", { class: "osl-name" }, `loop ${loop}`) : "",
      windows.length ? this.ruler() : "",
      track,
    );
  }

  /** The frames that each latent frame holds, above the cells; cells have this for screen readers too. */
  ruler() {
    const { windows } = this.state;
    const ruler = make("div", { class: "osl-ruler", "aria-hidden": "true", title: "The frames that each latent frame holds" });
    ruler.style.setProperty("--osl-frames", windows.length);
    ruler.append(...windows.map(([first, last], i) => make("span", { class: this.startsChunk(i) ? "osl-chunk" : "" }, first === last ? `${first}` : `${first}–${last}`)));
    return ruler;
  }

  /** Whether the VAE encodes a new chunk from this latent frame on. */
  startsChunk(latent) {
    const { windows } = this.state;
    return latent > 0 && windows.length > 0 && windows[latent][2] !== windows[latent - 1][2];
  }

  /** The index of the segment that determines a frame: of overlapping segments the last one. -1: none. */
  segmentAt(loop, frame) {
    return this.state.segments.findLastIndex((s) => s.loop === loop && frame >= s.target_start && frame < s.target_start + s.length);
  }

  cell(loop, frame, numbered) {
    const index = this.segmentAt(loop, frame);
    const what = index < 0 ? "generated" : `segment ${index + 1}, ${treatment(this.state.segments[index].edit_ratio)}`;
    const here = this.cursor.loop === loop && this.cursor.frame === frame;
    return make(
      "button",
      {
        class: `osl-cell ${this.startsChunk(frame) ? "osl-chunk" : ""}`,
        type: "button",
        tabindex: here ? "0" : "-1",
        "aria-label": `${frames(frame, 1, this.state.windows)}: ${what}`,
        "data-frame": frame,
        "data-key": `cell ${loop} ${frame}`,
        onclick: () => this.place(loop, frame),
        onfocus: () => this.moveCursor(loop, frame),
        onkeydown: (event) => this.onCellKey(event, loop, frame),
      },
      numbered ? make("span", { class: "osl-count", "aria-hidden": "true" }, String(frame)) : "",
    );
  }

  segment(segment, index) {
    const { num_frames } = this.state;
    const source = this.sources[segment.reference];
    const node = make("div", {
      class: `osl-segment ${segment.edit_ratio ? "osl-edited" : "osl-given"}`,
      role: "group",
      tabindex: "0",
      "aria-roledescription": "segment",
      "aria-label":
        `Segment ${index + 1}: ${frames(segment.target_start, segment.length, this.state.windows)} from ` +
        `${frames(segment.reference_start, segment.length, source.windows)} of reference ${segment.reference}, ${treatment(segment.edit_ratio)}`,
      "data-index": index,
      "data-key": `segment ${index}`,
      style: place(segment.target_start, segment.length, num_frames),
      onpointerdown: (event) => this.pressSegment(event, index),
      onfocus: () => this.model.get("selected") !== index && send(this.model, { selected: index }),
      onkeydown: (event) => this.onSegmentKey(event, index),
    });
    for (let i = 0; i < segment.length; i++) {
      node.append(make("span", { class: "osl-picture", style: picture(source, segment.reference_start + i) }));
    }
    const cover = make("span", { class: "osl-noise" });
    cover.style.backgroundImage = this.noise;
    cover.style.height = `${100 * segment.edit_ratio}%`;
    const letter = segment.edit_ratio ? `E ${Math.round(100 * segment.edit_ratio)} %` : "G";
    node.append(
      cover,
      make("span", { class: "osl-badge" }, letter),
      make("span", { class: "osl-ratio", "data-drag": "ratio", title: "edit ratio: pull upwards", style: `bottom: ${100 * segment.edit_ratio}%` }),
    );
    if (source.frames > 1) {
      node.append(
        make("span", { class: "osl-edge osl-start", "data-drag": "start" }),
        make("span", { class: "osl-edge osl-end", "data-drag": "end" }),
      );
    }
    return node;
  }

  drawSelection() {
    const selected = this.model.get("selected");
    for (const node of this.rows.querySelectorAll(".osl-segment")) {
      node.classList.toggle("osl-selected", Number(node.dataset.index) === selected);
    }
    this.drawInspector(selected);
  }

  /** Number fields of the selected segment. The panel is always in the layout, so that nothing moves. */
  drawInspector(index) {
    const segment = this.state.segments[index];
    if (!segment) {
      const hint = this.sources.length
        ? "Drag frames of a reference onto the video. Select a segment to change it. Keyboard: Enter picks a frame and places it."
        : "";
      return this.inspector.replaceChildren(make("span", { class: "osl-label" }, hint));
    }
    const { num_frames, windows } = this.state;
    const source = this.sources[segment.reference].frames;
    const number = (name, value, least, most, change) =>
      labelled(
        name,
        make("input", {
          type: "number",
          value,
          min: least,
          max: most,
          disabled: least === most,
          "data-key": `inspector ${name}`,
          onchange: (event) => change(clamp(Math.round(Number(event.target.value)) || 0, least, most)),
        }),
      );
    const ratio = make("input", {
      type: "range",
      min: 0,
      max: 1 - STEP,
      step: STEP,
      value: segment.edit_ratio,
      "aria-valuetext": treatment(segment.edit_ratio),
      "data-key": "inspector ratio",
      onchange: (event) => this.change(index, { edit_ratio: Number(event.target.value) }),
    });
    const longest = Math.min(source - segment.reference_start, num_frames - segment.target_start);
    this.inspector.replaceChildren(
      make("strong", {}, `Segment ${index + 1}`),
      number(windows.length ? "from latent" : "from frame", segment.target_start, 0, num_frames - segment.length, (n) => this.change(index, { target_start: n })),
      number("length", segment.length, 1, longest, (n) => this.change(index, { length: n })),
      number("reference from", segment.reference_start, 0, source - segment.length, (n) => this.change(index, { reference_start: n })),
      labelled("edit ratio", ratio),
      make("span", { class: "osl-number osl-percent" }, `${Math.round(100 * segment.edit_ratio)} %`),
      make("button", { onclick: () => this.remove(index), "data-key": "inspector delete" }, "Delete"),
    );
  }

  // ---- focus

  /** Draw, then focus the element `focusNext` (a data-key) or the one that had the focus. */
  keepFocus(draw) {
    const key = this.inspector.getRootNode().activeElement?.dataset?.key;
    draw();
    const at = (wanted) => wanted && this.inspector.parentElement.querySelector(`[data-key="${wanted}"]`);
    const next = at(this.focusNext);
    if (next) this.focusNext = undefined;
    (next ?? at(key))?.focus({ preventScroll: true });
  }

  // ---- keyboard

  onKey(event) {
    if (event.target.matches("input") || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    this.model.send({ do: event.shiftKey ? "redo" : "undo" });
    this.announce(event.shiftKey ? "Redone" : "Undone");
  }

  onPaletteKey(event, reference, frame) {
    const last = this.sources[reference].frames - 1;
    const to = { ArrowLeft: frame - 1, ArrowRight: frame + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) {
      this.pick(reference, clamp(to, 0, last), event.shiftKey);
      this.palette.querySelector(`[data-key="palette ${reference} ${this.picked.head}"]`).focus();
    } else if (event.key === "Enter" || event.key === " ") {
      if (!this.isPicked(reference, frame)) this.pick(reference, frame, false);
      const { start, length } = this.picked;
      this.announce(`Picked ${frames(start, length, this.sources[reference].windows)} of reference ${reference}. Choose a frame of the video and press Enter.`);
      this.rows.querySelector('.osl-cell[tabindex="0"]').focus();
    } else return;
    event.preventDefault();
  }

  onCellKey(event, loop, frame) {
    const { num_frames, loops } = this.state;
    const to = { ArrowLeft: frame - 1, ArrowRight: frame + 1, Home: 0, End: num_frames - 1 }[event.key];
    const other = { ArrowUp: loop - 1, ArrowDown: loop + 1 }[event.key];
    if (to !== undefined) this.cellAt(loop, clamp(to, 0, num_frames - 1)).focus();
    else if (other !== undefined) this.cellAt(clamp(other, 0, loops - 1), frame).focus();
    else return; // Enter and Space click
    event.preventDefault();
  }

  onSegmentKey(event, index) {
    const segment = this.state.segments[index];
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const step = this.state.step; // starts are those of a chunk
    const up = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    this.focusNext = `segment ${index}`;
    if (by !== undefined && event.shiftKey) this.change(index, this.stretched(segment, "end", by));
    else if (by !== undefined && event.altKey) this.change(index, this.stretched(segment, "start", by * step));
    else if (by !== undefined) this.change(index, this.moved(segment, segment.loop, segment.target_start + by * step));
    else if (up !== undefined && event.shiftKey) this.change(index, this.moved(segment, clamp(segment.loop - up, 0, this.state.loops - 1), segment.target_start));
    else if (up !== undefined) this.change(index, { edit_ratio: clamp(segment.edit_ratio + STEP * up, 0, 1 - STEP) });
    else {
      this.focusNext = undefined;
      if (event.key !== "Delete" && event.key !== "Backspace") return;
      this.cursor = { loop: segment.loop, frame: segment.target_start };
      this.remove(index);
    }
    event.preventDefault();
  }

  cellAt(loop, frame) {
    return this.rows.querySelector(`[data-key="cell ${loop} ${frame}"]`);
  }

  moveCursor(loop, frame) {
    this.cellAt(this.cursor.loop, this.cursor.frame)?.setAttribute("tabindex", "-1");
    this.cursor = { loop, frame };
    this.cellAt(loop, frame).setAttribute("tabindex", "0");
  }

  // ---- the palette

  isPicked(reference, frame) {
    const p = this.picked;
    return p !== null && p.reference === reference && frame >= p.start && frame < p.start + p.length;
  }

  /** Pick a frame of a reference, or with `extend` all frames from the anchor to this one. */
  pick(reference, frame, extend) {
    const anchor = extend && this.picked?.reference === reference ? this.picked.anchor : frame;
    const start = Math.min(anchor, frame);
    this.picked = { reference, anchor, head: frame, start, length: Math.abs(frame - anchor) + 1 };
    this.drawPicked();
    if (this.picked.length > 1) this.announce(`${frames(start, this.picked.length, this.sources[reference].windows)} of reference ${reference} are picked`);
  }

  /** Place the picked frames. */
  place(loop, frame) {
    if (!this.picked || this.picked.reference >= this.sources.length) return this.announce("Nothing is picked: first choose a frame of a reference and press Enter");
    const segment = this.placed(this.picked, loop, frame);
    if (segment) this.add(segment);
    else this.announce("That clip is generated in a later loop");
  }

  // ---- dragging

  pressPalette(event, reference, frame) {
    if (event.button !== 0) return;
    if (event.shiftKey) return this.pick(reference, frame, true);
    if (!this.isPicked(reference, frame)) this.pick(reference, frame, false);
    const piece = { ...this.picked };
    const grabbed = frame - piece.start; // this frame stays under the pointer
    const ghost = make("div", { class: "osl-drop" });
    this.drag(event, {
      move: (at) => {
        const segment = at && this.placed(piece, at.loop, at.frame - grabbed);
        if (!segment) return ghost.remove();
        ghost.style.cssText = place(segment.target_start, segment.length, this.state.num_frames);
        at.track.append(ghost);
      },
      drop: (at) => {
        ghost.remove();
        const segment = at && this.placed(piece, at.loop, at.frame - grabbed);
        if (segment) this.add(segment);
      },
      click: () => this.pick(reference, frame, false),
    });
  }

  pressSegment(event, index) {
    if (event.button !== 0) return;
    const segment = this.state.segments[index];
    const node = event.currentTarget;
    const kind = event.target.dataset.drag ?? "move";
    const box = node.getBoundingClientRect();
    const width = box.width / segment.length;
    let result = segment;
    this.drag(event, {
      move: (at, x, y) => {
        const by = Math.round((x - event.clientX) / width);
        if (kind === "ratio") {
          const ratio = clamp(Math.round((box.bottom - y) / box.height / STEP) * STEP, 0, 1 - STEP);
          result = { ...segment, edit_ratio: Math.round(ratio * 100) / 100 };
        } else if (kind === "move") result = this.moved(segment, at ? at.loop : segment.loop, segment.target_start + by);
        else result = this.stretched(segment, kind, by);
        const fresh = this.segment(result, index);
        fresh.classList.add("osl-selected");
        node.replaceChildren(...fresh.childNodes);
        node.className = fresh.className;
        node.style.cssText = fresh.style.cssText;
        const track = this.rows.querySelector(`[data-loop="${result.loop}"]`);
        if (node.parentElement !== track) track.append(node);
      },
      drop: () => {
        this.focusNext = `segment ${index}`;
        if (textOf(result) === textOf(segment)) this.keepFocus(() => this.draw());
        else this.change(index, result);
      },
      click: () => {
        node.focus();
        send(this.model, { selected: index });
      },
      cancel: () => this.keepFocus(() => this.draw()),
    });
  }

  /** Follow the pointer until it is released: `move` and `drop` get the cell below it, { loop, frame, track } or null. */
  drag(event, { move, drop, click, cancel }) {
    event.preventDefault();
    event.currentTarget.focus({ preventScroll: true });
    const start = [event.clientX, event.clientY];
    let moving = false;
    const under = ({ clientX, clientY }) => {
      for (const track of this.rows.querySelectorAll(".osl-track")) {
        const box = track.getBoundingClientRect();
        if (clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom) continue;
        const frame = Math.floor(((clientX - box.left) / box.width) * this.state.num_frames);
        return { loop: Number(track.dataset.loop), frame: clamp(frame, 0, this.state.num_frames - 1), track };
      }
      return null;
    };
    const onMove = (e) => {
      moving ||= Math.hypot(e.clientX - start[0], e.clientY - start[1]) > 3;
      if (moving) move(under(e), e.clientX, e.clientY);
    };
    const end = () => {
      for (const [name, listener] of listeners) window.removeEventListener(name, listener, true);
    };
    const onUp = (e) => {
      end();
      if (moving) drop(under(e));
      else click();
    };
    const onCancel = (e) => {
      if (e.type === "keydown" && e.key !== "Escape") return;
      end();
      this.rows.querySelector(".osl-drop")?.remove();
      cancel?.();
    };
    const listeners = [
      ["pointermove", onMove],
      ["pointerup", onUp],
      ["pointercancel", onCancel],
      ["keydown", onCancel],
    ];
    for (const [name, listener] of listeners) window.addEventListener(name, listener, true);
  }
}

// ------------------------------------------------------------------------------------------------- pictures

/** The style of an element that covers `length` frames from `start`. */
function place(start, length, num_frames) {
  return `left: ${(100 * start) / num_frames}%; width: ${(100 * length) / num_frames}%`;
}

/** The style that shows a frame of a reference; long references have a thumbnail of every n-th frame. */
function picture({ thumbnails, frames }, frame) {
  if (!thumbnails.length) return "";
  return `background-image: url(${thumbnails[Math.floor((frame * thumbnails.length) / frames)]})`;
}

/** Grey noise as a background, deterministic. */
function noisePicture() {
  const canvas = make("canvas", { width: 64, height: 64 });
  const context = canvas.getContext("2d");
  const image = context.createImageData(64, 64);
  let seed = 1;
  for (let i = 0; i < image.data.length; i += 4) {
    seed = (seed * 16807) % 2147483647;
    image.data.fill(96 + (seed % 128), i, i + 3);
    image.data[i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return `url(${canvas.toDataURL()})`;
}
