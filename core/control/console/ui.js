// What pages are made of: headings, tables, badges, fields, notices, one dialog.

import { h, newId, s, say, show } from "./dom.js";

/** A state is a word and a shape; the colour only repeats it. `kind`: good, busy, bad, off. */
const SHAPES = { good: "M3 7.5 6 10.5 11 4", busy: "M7 2.2a4.8 4.8 0 1 0 0 9.600 4.800 4.800 0 0 0 0-9.600M7 4.600V7l1.500 1", bad: "M7 3.2v4.6M7 10.6v.2", off: "M4 7h6" };

export const badge = (kind, text) =>
  h("span", { class: `badge ${kind}` }, s("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, s("path", { d: SHAPES[kind] })), text);

export const code = (text) => h("code", {}, text);

/** A template: its placeholders are not broken in two. */
export const template = (text) => h("code", {}, text.split(/(#\{[^}]*\})/).map((part, index) => (index % 2 ? h("span", { class: "whole" }, part) : part)));

export const link = (href, text, key) => h("a", { href, key }, text);

export function heading(title, lead, ...actions) {
  return h(
    "header",
    { class: "heading" },
    h("div", {}, h("h1", { id: "title", tabindex: "-1" }, title), lead && h("p", { class: "lead" }, lead)),
    actions.length > 0 && h("div", { class: "actions" }, actions),
  );
}

export const notice = (kind, title, ...text) =>
  h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : undefined }, h("strong", {}, title), text.length > 0 && h("p", {}, text));

/** What stands where a table would, if there is nothing to list. */
export const empty = (title, ...text) => h("div", { class: "empty" }, h("strong", {}, title), h("p", {}, text));

export const loading = (what) => h("p", { class: "loading", role: "status" }, `Asking for ${what} …`);

/** `columns`: [heading, class]; the first cell of each row is its heading. */
export function table(caption, columns, rows) {
  const id = newId("table");
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": id, key: `scroll ${caption}` },
    h(
      "table",
      {},
      h("caption", { id, class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell, index) =>
              index === 0
                ? h("th", { scope: "row", class: columns[0][1] }, cell)
                : h("td", { class: columns[index][1] }, cell),
            ),
          ),
        ),
      ),
    ),
  );
}

export const facts = (...pairs) =>
  h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** The last values of something that goes on, as a line; in words beside it. */
export function line(values) {
  const least = Math.min(...values);
  const range = Math.max(...values) - least;
  if (values.length < 3 || range === 0) return null;
  const points = values.map((value, index) => `${((index / (values.length - 1)) * 76 + 2).toFixed(1)},${(18 - ((value - least) / range) * 15).toFixed(1)}`);
  return s("svg", { class: "line", viewBox: "0 0 80 20", "aria-hidden": "true" }, s("polyline", { points: points.join(" ") }));
}

// --- forms -------------------------------------------------------------------------------------------------------------------------------

/** A labelled control with a hint and a place for what is wrong with it. `input` is made with `attributes`. */
export class Field {
  constructor(label, control, { hint, wide } = {}) {
    this.id = newId("field");
    this.control = control;
    this.label = label;
    this.fault = h("p", { class: "fault", id: `${this.id}-fault` });
    const described = [hint && `${this.id}-hint`, this.fault.id].filter(Boolean).join(" ");
    control.id = this.id;
    control.setAttribute("aria-describedby", described);
    const isCheck = control.type === "checkbox";
    const name = h("label", { for: this.id }, label);
    const hintElement = hint && h("p", { class: "hint", id: `${this.id}-hint` }, hint);
    this.element = h(
      "div",
      { class: `field${isCheck ? " check" : ""}${wide ? " wide" : ""}` },
      isCheck ? [control, name] : [name, control],
      hintElement,
      this.fault,
    );
  }

  get value() {
    return this.control.type === "checkbox" ? this.control.checked : this.control.value;
  }

  set value(value) {
    if (this.control.type === "checkbox") this.control.checked = value;
    else this.control.value = value;
  }

  wrong(text) {
    this.fault.textContent = text ?? "";
    if (text) this.control.setAttribute("aria-invalid", "true");
    else this.control.removeAttribute("aria-invalid");
  }

  hide(hidden) {
    this.element.hidden = hidden;
  }
}

const shared = { autocomplete: "off", spellcheck: "false", autocapitalize: "off" };

export const text = (label, { value = "", hint, wide, mono, ...more } = {}) =>
  new Field(label, h("input", { type: "text", ...shared, class: mono && "mono", value, ...more }), { hint, wide });

export const area = (label, { value = "", hint, rows = 3, ...more } = {}) =>
  new Field(label, h("textarea", { ...shared, class: "mono", rows, value, ...more }), { hint, wide: true });

export const check = (label, { value = false, hint } = {}) => new Field(label, h("input", { type: "checkbox", checked: value }), { hint });

/** `options`: [value, text] */
export const choice = (label, options, { value, hint, ...more } = {}) => {
  const select = h("select", more, options.map(([each, shown]) => h("option", { value: each }, shown)));
  if (value !== undefined) select.value = value;
  return new Field(label, select, { hint });
};

export const group = (legend, ...fields) =>
  h("fieldset", {}, h("legend", {}, legend), h("div", { class: "fields" }, fields.map((field) => field.element ?? field)));

/** Puts what the API says is wrong beside the fields that it is about; gives back the rest. */
export function tellFields(fields, details) {
  const rest = [];
  for (const field of Object.values(fields)) field.wrong("");
  for (const [name, faults] of Object.entries(details)) {
    const field = Object.entries(fields).find(([known]) => name === known || name.startsWith(`${known}.`) || name.startsWith(`${known}[`))?.[1];
    const what = faults.join(", ");
    if (field) field.wrong(what);
    else rest.push(name === "body" ? what : `${name}: ${what}`);
  }
  return rest;
}

/** The first control that something is wrong with, made visible. */
export function firstWrong(form) {
  const found = form.querySelector("[aria-invalid]");
  for (let at = found?.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  return found;
}

export function button(text_, act, { kind = "", key, ...more } = {}) {
  return h("button", { type: "button", class: kind, onclick: act, key, ...more }, text_);
}

/** Ask before what cannot be undone. True if confirmed. */
export function confirm(title, what, doing) {
  return new Promise((settle) => {
    const id = newId("dialog");
    const dialog = h(
      "dialog",
      { "aria-labelledby": id, onclose: () => { dialog.remove(); settle(dialog.returnValue === "yes"); } },
      h("h2", { id }, title),
      h("p", {}, what),
      h(
        "div",
        { class: "actions" },
        button("Cancel", () => dialog.close("no")),
        button(doing, () => dialog.close("yes"), { kind: "danger" }),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Tell something that must be read, with a secret to take away if there is one. Settled when it is closed; then nothing of it is left. */
export function tell(title, what, secret, label = "The key with its secret") {
  return new Promise((settle) => {
    const id = newId("dialog");
    const field = secret && text(label, { value: secret, mono: true, readonly: true });
    const close = () => dialog.close();
    const dialog = h(
      "dialog",
      { "aria-labelledby": id, onclose: () => { removeEventListener("pagehide", close); if (field) field.value = ""; dialog.remove(); settle(); } },
      h("h2", { id }, title),
      h("p", {}, what),
      field && field.element,
      h("div", { class: "actions" }, field && button("Copy", () => { field.control.select(); navigator.clipboard?.writeText(secret).then(() => say("Copied."), () => {}); }), button("Close", close, { kind: "main" })),
    );
    addEventListener("pagehide", close); // or who steps back to this page would find it
    document.body.append(dialog);
    dialog.showModal();
    field?.control.select();
  });
}

// --- what is asked for again and again -----------------------------------------------------------------------------------------------------

/** Shows what `load` gives, by `draw`, now and every `seconds` until the page is left. Trouble is told above what was shown last. */
export function live(place, what, load, draw, seconds) {
  const trouble = h("div", {});
  const body = h("div", { class: "stack" }, loading(what));
  const again = new AbortController();
  let timer;
  let loaded = false;
  place.append(trouble, body);
  const turn = async () => {
    clearTimeout(timer);
    try {
      const found = await load(again.signal);
      if (again.signal.aborted) return;
      loaded = true;
      show(trouble);
      show(body, draw(found));
    } catch (error) {
      if (error.name === "AbortError" || again.signal.aborted) return;
      if (!loaded) show(body);
      if (trouble.textContent === "" || !trouble.textContent.includes(error.message)) {
        show(trouble, notice("bad", loaded ? "This is what was known last" : `Could not get ${what}`, error.message));
        say(error.message);
      }
    }
    if (seconds) timer = setTimeout(turn, document.hidden ? seconds * 4000 : seconds * 1000);
  };
  turn();
  return { again: turn, stop: () => { again.abort(); clearTimeout(timer); } };
}
