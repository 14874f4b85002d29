// TaskLab: a form with a MaskTimeline, a Generate button, and the results.
// This module never sets a trait. Every change is a message to Python, and every message gets a reply:
// { do: "change", values }, "generate", "cancel", "show", "compare", "restore", "video".

const PATIENCE = 4000; // milliseconds without a reply before the page says so

export default {
  render({ model, el }) {
    el.classList.add("osl");
    const status = announcer();
    const note = make("div", { class: "osl-error", role: "alert" });
    const isShown = (text) => Object.values(model.get("errors")).includes(text); // beside its field
    const messages = messenger(model, (text) => write(note, isShown(text) ? "" : text));
    const { ask } = messages;
    const form = requestForm(model, ask);
    const parts = [form, runBar(model, ask, form, status), stage(model, ask), shelf(model, ask, status)];
    const root = make("div", { class: "osl-stack" }, ...parts.map((part) => part.node), status);
    parts[1].messages.append(note);
    keepKeys(root);
    el.append(root);
    const timeline = childView(model, form.timeline);
    return () => [...parts, timeline, messages].forEach((part) => part.end());
  },
};

/** Messages to Python and their replies. Calls `report` with the failure of each reply ("": none). */
function messenger(model, report) {
  const pending = new Map(); // id -> { resolve, timer }
  const view = Math.random().toString(36).slice(2); // replies reach every view of the model
  let count = 0;
  const listen = (content, buffers) => {
    const message = pending.get(content.reply);
    if (!message) return;
    pending.delete(content.reply);
    clearTimeout(message.timer);
    report(content.failure ?? "");
    message.resolve({ ...content, buffers });
  };
  model.on("msg:custom", listen);
  return {
    /** Send a message; returns the promise of its reply. */
    ask(action, details = {}) {
      const id = `${view}-${count++}`;
      return new Promise((resolve) => {
        const noReply = () => report("The kernel has not replied yet. It is busy, or it has ended: then run the cell again.");
        pending.set(id, { resolve, timer: setTimeout(noReply, PATIENCE) });
        try {
          model.send({ do: action, id, ...details });
        } catch {
          noReply(); // a page without a kernel
        }
      });
    },
    end() {
      model.off("msg:custom", listen);
      pending.forEach(({ timer }) => clearTimeout(timer));
    },
  };
}

/** Show the timeline, a widget of its own, in an element. */
function childView(model, element) {
  let view, ended;
  const show = async () => {
    const id = model.get("timeline").slice("IPY_MODEL_".length);
    view = await model.widget_manager.create_view(await model.widget_manager.get_model(id));
    if (ended) view.remove();
    else element.replaceChildren(view.el);
  };
  show().catch((error) => element.replaceChildren(make("div", { class: "osl-error" }, `The timeline cannot be shown: ${error.message}`)));
  return {
    end() {
      ended = true;
      view?.remove();
    },
  };
}

// --------------------------------------------------------------------------------------------------------- the form

function requestForm(model, ask) {
  let pending = 0;
  const change = async (values) => {
    pending += 1;
    await ask("change", { values });
    pending -= 1;
    fill();
  };

  // the prompt: sent when typing pauses, and when the field loses the focus
  const prompt = make("textarea", { rows: 2, spellcheck: false });
  const promptError = make("div", { class: "osl-error", role: "alert" });
  let pause;
  const sendPrompt = () => {
    clearTimeout(pause);
    pause = undefined;
    if (prompt.value !== model.get("form").prompt) change({ prompt: prompt.value });
  };
  prompt.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(sendPrompt, 200);
  });
  prompt.addEventListener("change", sendPrompt);

  // the settings
  const controls = { prompt };
  const fields = model.get("fields");
  const settings = fields.map((field) => {
    const { name, text, choices, least, most, step, title, required } = field;
    const control = choices
      ? make("select", { title })
      : make("input", { type: "number", min: least, max: most, step, required, title });
    const read = () => (choices ? JSON.parse(control.value) : Number.isNaN(control.valueAsNumber) ? null : control.valueAsNumber);
    control.addEventListener("change", () => change({ [name]: read() }));
    control.addEventListener("blur", () => fill());
    controls[name] = control;
    return labelled(text, control, { class: "osl-lab-field" });
  });
  const another = make("button", { type: "button", title: "Another seed", "aria-label": "Another seed" }, "⟳");
  another.addEventListener("click", () => change({ seed: Math.floor(Math.random() * 2 ** 31) }));
  controls.seed.after(another);
  const settingsError = make("div", { class: "osl-error osl-lab-line", role: "alert" });

  const fill = () => {
    if (pending) return; // don't overwrite newer values
    const values = model.get("form");
    for (const { name, choices } of fields) {
      const control = controls[name];
      if (choices) {
        const offered = model.get(choices).map((value) => JSON.stringify(value));
        if (offered.join() !== [...control.options].map((option) => option.value).join()) {
          control.replaceChildren(...offered.map((value) => make("option", { value }, optionText(JSON.parse(value)))));
        }
        control.value = JSON.stringify(values[name]);
      } else if (!isFocused(control)) control.value = values[name] ?? "";
    }
    set(controls.condition_frames, { disabled: values.loops === 1 });
    if (pause === undefined && !(isFocused(prompt) && prompt.value.trim() === values.prompt.trim())) prompt.value = values.prompt;
  };
  const showErrors = () => {
    const errors = model.get("errors");
    for (const [name, control] of Object.entries(controls)) set(control, { "aria-invalid": name in errors && "true" });
    write(promptError, errors.prompt ?? "");
    write(settingsError, fields.map(({ name, text }) => name in errors && `${text}: ${errors[name]}`).filter(Boolean).join("\n"));
  };
  const ends = [follow(model, ["form", "sizes", "samplers"], fill), follow(model, ["errors"], showErrors)];

  const promptField = labelled("Prompt", prompt, { class: "osl-lab-field osl-lab-with-error" });
  prompt.before(promptError);
  const timeline = make("div", { class: "osl-lab-timeline" });
  return {
    timeline,
    node: make(
      "div",
      { class: "osl-stack" },
      promptField,
      make("div", { class: "osl-panel" }, make("div", { class: "osl-lab-settings" }, settings), settingsError),
      timeline,
    ),
    /** Send the prompt without waiting for a pause. */
    finish: sendPrompt,
    /** Move the focus to the first invalid field. */
    focusError() {
      const invalid = Object.keys(controls).find((name) => name in model.get("errors"));
      controls[invalid]?.focus();
    },
    onEnter: (run) =>
      prompt.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
      }),
    end() {
      clearTimeout(pause);
      ends.forEach((end) => end());
    },
  };
}

function optionText(value) {
  return Array.isArray(value) ? value.join("×") : (value ?? "not said");
}

function isFocused(control) {
  return control.getRootNode().activeElement === control;
}

// ------------------------------------------------------------------------------------------------- Generate and Cancel

function runBar(model, ask, form, status) {
  const generate = make("button", { type: "button", class: "osl-main" }, "Generate");
  const cancel = make("button", { type: "button" }, "Cancel");
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const text = make("span", { class: "osl-number osl-label osl-lab-progress" });
  const failure = make("div", { class: "osl-error", role: "alert" });
  const notes = make("div", { class: "osl-label osl-lab-notes", role: "status", "aria-label": "Notes" });
  const messages = make("div", { class: "osl-lab-line" }, failure, notes);
  const isRunning = () => ["running", "cancelling"].includes(model.get("state"));

  const run = async () => {
    if (isRunning()) return;
    form.finish();
    const { failure } = await ask("generate");
    if (!failure) return;
    write(status, `Not started: ${failure}`);
    form.focusError();
  };
  generate.addEventListener("click", run);
  form.onEnter(run);
  cancel.addEventListener("click", () => ask("cancel"));

  let before = model.get("state");
  const update = () => {
    const state = model.get("state");
    const { step, steps, loop, loops, done, seconds, left } = model.get("progress");
    const inLoop = loops > 1 ? `, loop ${loop} of ${loops}` : "";
    const sentences = {
      idle: "",
      running: step === 0 ? "Preparing" : done === 1 ? `Decoding, ${seconds} s` : `Step ${step} of ${steps}${inLoop}, ${seconds} s, ${left} s left`,
      cancelling: "Cancelling after this step",
      done: `Done: result ${model.get("history").at(-1)?.number} in ${model.get("history").at(-1)?.seconds} s`,
      cancelled: "Cancelled",
      failed: "Failed",
    };
    write(text, sentences[state]);
    bar.value = state === "done" ? 1 : isRunning() ? (done ?? 0) : 0;
    // not `disabled`: a disabled button loses the focus
    set(generate, { "aria-disabled": isRunning() && "true" });
    set(cancel, { "aria-disabled": state !== "running" && "true" });
    write(failure, model.get("failure") || model.get("errors").timeline || "");
    write(notes, model.get("notes").map((note) => `Note: ${note}`).join("\n"));
    if (state !== before) write(status, state === "running" ? "Generating" : sentences[state]);
    before = state;
  };
  const end = follow(model, ["state", "progress", "failure", "errors", "notes", "history"], update);
  return {
    messages,
    node: make("div", { class: "osl-lab-run" }, make("div", { class: "osl-row" }, generate, cancel, bar, text), messages),
    end,
  };
}

// ----------------------------------------------------------------------------------------------- videos and code

function stage(model, ask) {
  const videos = videoUrls(model, ask);
  const left = pane(videos);
  const right = pane(videos);
  const preview = make("img", { class: "osl-pixels osl-lab-preview", alt: "Preview: some frames of the current prediction", hidden: true });
  left.box.append(preview);

  const draw = () => {
    const entry = (number) => model.get("history").find((candidate) => candidate.number === number);
    left.show(entry(model.get("shown")), "Result", "Press Generate: the video is played here.");
    right.show(entry(model.get("compared")), "Comparison", "Press Compare on a result: it is played here.");
  };
  const drawPreview = () => {
    const bytes = model.get("preview");
    showBytes(preview, bytes, "image/jpeg");
    preview.hidden = !bytes?.byteLength;
    left.rename(preview.hidden ? null : "Preview");
  };
  const ends = [follow(model, ["history", "shown", "compared", "video"], draw), follow(model, ["preview"], drawPreview)];
  const code = ["python_code", "command_line"].map((trait) => codePanel(model, trait, { python_code: "Python", command_line: "Command line" }[trait]));
  return {
    node: make("div", { class: "osl-lab-stage" }, make("div", { class: "osl-lab-panes" }, left.node, right.node), make("div", { class: "osl-stack osl-lab-code" }, code.map((part) => part.node))),
    end() {
      [...ends, ...code.map((part) => part.end)].forEach((end) => end());
      videos.end();
      showBytes(preview, null);
    },
  };
}

/** The blob: URLs of results' videos: of the current one from a trait, of others fetched when needed. */
function videoUrls(model, ask) {
  const urls = new Map(); // number -> URL
  const keep = (number, type, bytes) => {
    if (!urls.has(number)) urls.set(number, URL.createObjectURL(new Blob([bytes], { type })));
    return urls.get(number);
  };
  return {
    async of({ number, type }) {
      for (const old of urls.keys()) {
        if (model.get("history").some((entry) => entry.number === old)) continue;
        URL.revokeObjectURL(urls.get(old));
        urls.delete(old);
      }
      if (urls.has(number)) return urls.get(number);
      const bytes = model.get("video");
      if (number === model.get("shown") && bytes?.byteLength) return keep(number, type, bytes);
      const { failure, buffers } = await ask("video", { number });
      return failure ? null : keep(number, type, buffers[0]);
    },
    end() {
      urls.forEach((url) => URL.revokeObjectURL(url));
    },
  };
}

/** Plays a result; shows its picture until the video has been fetched. */
function pane(videos) {
  const title = make("h4", { class: "osl-title" });
  const box = make("div", { class: "osl-lab-box" });
  const prompt = make("div", { class: "osl-lab-prompt" });
  const line = make("div", { class: "osl-label osl-lab-small" });
  let current, name;
  const media = make("div", { class: "osl-lab-media" });
  box.append(media);

  return {
    box,
    node: make("section", { class: "osl-lab-pane", "aria-label": "Video" }, title, box, prompt, line),
    rename(text) {
      write(title, text ?? name ?? "");
    },
    /** Play a result; without one, show the title `empty` and the hint `purpose`. */
    async show(entry, empty, purpose) {
      if (entry ? entry.number === current : current === undefined && media.firstChild) return;
      current = entry?.number;
      name = entry ? `Result ${entry.number}` : empty;
      write(title, name);
      write(prompt, entry?.prompt ?? "");
      write(line, entry?.line ?? "");
      if (!entry) return media.replaceChildren(make("span", { class: "osl-label" }, purpose));
      const picture = make("img", { class: "osl-pixels", alt: `Frames of result ${entry.number}` });
      showBytes(picture, entry.picture, "image/jpeg");
      media.replaceChildren(picture);
      const src = await videos.of(entry);
      if (!src || current !== entry.number) return;
      const label = `Result ${entry.number}: ${entry.prompt}`;
      const player =
        entry.type === "image/png"
          ? make("img", { class: "osl-pixels", src, alt: label })
          : make("video", { class: "osl-pixels", src, controls: true, loop: true, autoplay: true, playsinline: true, "aria-label": label });
      player.muted = true; // the attribute alone has no effect on elements made by scripts
      media.replaceChildren(player);
      showBytes(picture, null);
    },
  };
}

/** Code with a Copy button. */
function codePanel(model, trait, name) {
  const wrapped = trait === "command_line" && "osl-lab-wrapped"; // one line, however long
  const code = make("pre", { class: `osl-code osl-lab-pre ${wrapped || ""}`, tabindex: 0, role: "region", "aria-label": name });
  const copied = make("span", { class: "osl-label", role: "status" });
  const copy = make("button", { type: "button", "aria-label": `Copy ${name}` }, "Copy");
  let timer;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.get(trait));
      write(copied, "Copied");
    } catch {
      const selection = window.getSelection();
      selection.selectAllChildren(code);
      write(copied, "Selected: press Ctrl+C");
    }
    clearTimeout(timer);
    timer = setTimeout(() => write(copied, ""), 4000);
  });
  const update = () => {
    write(code, model.get(trait) || "Correct the errors in the form to see the code.");
    copy.disabled = !model.get(trait);
  };
  const end = follow(model, [trait], update);
  return {
    node: make("div", {}, make("div", { class: "osl-row" }, make("h4", { class: "osl-title osl-grow" }, name), copied, copy), code),
    end() {
      clearTimeout(timer);
      end();
    },
  };
}

// ------------------------------------------------------------------------------------------------------- the results

function shelf(model, ask, status) {
  const cards = new Map(); // number -> { node, show, compare }
  const list = make("ol", { class: "osl-lab-cards", reversed: true });
  const empty = make("p", { class: "osl-label" }, "Results appear here with their settings: show, compare or restore them.");
  const dropped = make("p", { class: "osl-label" });

  const card = (entry) => {
    const name = `result ${entry.number}`;
    const picture = make("img", { class: "osl-pixels", alt: "" });
    showBytes(picture, entry.picture, "image/jpeg");
    const show = make("button", { type: "button", class: "osl-lab-show", "aria-label": `Show ${name}`, onclick: () => ask("show", { number: entry.number }) }, picture);
    const compare = make("button", { type: "button", "aria-label": `Compare ${name}` }, "Compare");
    compare.addEventListener("click", () => ask("compare", { number: model.get("compared") === entry.number ? 0 : entry.number }));
    const restore = make("button", { type: "button", "aria-label": `Restore ${name}`, title: "Fill the form with its settings" }, "Restore");
    restore.addEventListener("click", async () => {
      const { failure } = await ask("restore", { number: entry.number });
      if (!failure) write(status, `The form has the request of ${name}`);
    });
    const node = make(
      "li",
      { class: "osl-lab-card" },
      show,
      make("div", { class: "osl-lab-prompt", title: entry.prompt }, make("b", {}, `${entry.number} `), entry.prompt),
      make("div", { class: "osl-label osl-lab-small" }, `${entry.line} · ${entry.seconds} s`),
      make("div", { class: "osl-row" }, compare, restore),
    );
    return { node, show, compare, picture };
  };

  const update = () => {
    const history = model.get("history");
    for (const [number, { node, picture }] of cards) {
      if (history.some((entry) => entry.number === number)) continue;
      showBytes(picture, null);
      node.remove();
      cards.delete(number);
    }
    for (const entry of history) {
      if (cards.has(entry.number)) continue;
      cards.set(entry.number, card(entry));
      list.prepend(cards.get(entry.number).node);
    }
    cards.forEach(({ show, compare }, number) => {
      set(show, { "aria-pressed": String(number === model.get("shown")) });
      set(compare, { "aria-pressed": String(number === model.get("compared")) });
    });
    empty.hidden = history.length > 0;
    list.hidden = !history.length;
    const count = model.get("dropped");
    write(dropped, count ? `The ${history.length} newest results are kept; ${count} older ${count === 1 ? "one was" : "ones were"} dropped.` : "");
  };
  const end = follow(model, ["history", "shown", "compared", "dropped"], update);
  return {
    node: make("section", { class: "osl-lab-shelf", "aria-label": "Results" }, make("h4", { class: "osl-title" }, "Results"), empty, list, dropped),
    end() {
      end();
      cards.forEach(({ picture }) => showBytes(picture, null));
    },
  };
}
