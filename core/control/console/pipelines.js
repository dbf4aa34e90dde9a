// What rules and mappings have in common: their lists with states, and the form beside a preview that follows it.

import { get, patch, post, remove } from "./api.js";
import { h, say, show } from "./dom.js";
import { badge, button, confirm, empty, firstWrong, heading, live, loading, notice, table, tellFields } from "./ui.js";

const EVERY_S = 5;
const TYPING_MS = 250;
const REMEMBERED = 60;
const history = new Map();

/** The last values of a lag, this one included. */
export function remember(key, value) {
  const values = history.get(key) ?? [];
  values.push(value);
  if (values.length > REMEMBERED) values.shift();
  history.set(key, values);
  return values;
}

export const isStatic = (each) => each.created === 0;

/** A list of `kind` (rule, mapping). `columns` and `row(one, cores)` are the page's; the row's last member is its state: {bad: boolean, …}. */
export function list(place, context, app, { kind, title, lead, columns, row, none }) {
  const fixed = isStatic(context.app());
  const can = context.may("operator") && !fixed;
  place.append(
    heading(title, lead, can && h("a", { class: "button main", href: `${context.path(`${kind}s`)}/new` }, `New ${kind}`)),
    ...(fixed ? [h("p", { class: "hint" }, `The app ${app} is configured in core.toml: its ${kind}s are changed there, on every core.`)] : []),
  );
  let told = "";
  const load = async (signal) => {
    const [found, { cores, peers }] = await Promise.all([get(["apps", app, `${kind}s`], { signal }), get(["cluster"], { signal })]);
    return { found, cores, peers };
  };
  return live(
    place,
    `${kind}s`,
    load,
    ({ found, cores, peers }) => {
      if (found.length === 0) return empty(`This app has no ${kind}`, none, can ? [" ", h("a", { href: `${context.path(`${kind}s`)}/new` }, `Make the first one`), "."] : []);
      const rows = found.map((each) => row(each, cores));
      const bad = found.filter((_, index) => rows[index].state.bad).map((each) => each.id);
      const news = bad.length ? `In trouble: ${bad.join(", ")}` : "";
      if (news !== told) say(news || `Every ${kind} is well again.`);
      told = news;
      const silent = cores.filter((core) => core.error);
      return [
        silent.length > 0 && notice("busy", `Not complete: ${silent.map((core) => core.url).join(", ")} does not answer`),
        table(title, columns, rows.map((each) => each.cells)),
        peers === 0 && h("p", { class: "hint" }, "State and lag are those of this core’s partitions. For all cores, name them in ", h("code", {}, "admin.peers"), "."),
      ];
    },
    EVERY_S,
  );
}

export const named = (context, kind, each) => [
  h("a", { href: `${context.path(`${kind}s`)}/${encodeURIComponent(each.id)}`, class: "mono", key: each.id }, each.id),
  isStatic(each) && h("small", {}, "in core.toml"),
];

export const trouble = (what, when) => (what ? [h("span", {}, what), when && h("small", {}, when)] : "–");

/**
 * One rule or mapping, or a new one. `make(found)` gives {fields, groups, body(), sample: {element, value()}}; `draw(results)` what the
 * preview says; `above(place)`, if there is one, puts a page of its own above the form of what is there already.
 */
export function editor(place, context, app, id, { kind, what, make, draw, above }) {
  const isNew = id === "new";
  let running;
  const page = { stop: () => { stopped.abort(); running?.stop(); } };
  const stopped = new AbortController();
  place.append(heading(isNew ? `New ${kind}` : `${kind[0].toUpperCase()}${kind.slice(1)} ${id}`, what));
  const body = h("div", {}, isNew ? [] : loading(`the ${kind}`));
  const aloft = h("div", {});
  place.append(aloft, body);
  const start = async () => {
    try {
      build(isNew ? null : await get(["apps", app, `${kind}s`, id], { signal: stopped.signal }));
    } catch (error) {
      if (error.name !== "AbortError") show(body, notice("bad", `Could not get the ${kind}`, error.message));
    }
  };
  const build = (found) => {
    const fixed = isStatic(context.app()) || (found !== null && isStatic(found));
    const can = context.may("operator") && !fixed;
    const { fields, groups, body: bodyOf, sample } = make(found);
    const head = h("div", {});
    const save = h("button", { type: "submit", class: "main" }, isNew ? `Make the ${kind}` : "Save");
    const form = h(
      "form",
      {
        class: "stack",
        "aria-label": `The ${kind}`,
        onsubmit: async (event) => {
          event.preventDefault();
          save.disabled = true;
          try {
            const made = isNew ? await post(["apps", app, `${kind}s`], bodyOf()) : await patch(["apps", app, `${kind}s`, id], bodyOf());
            say(isNew ? `The ${kind} ${made.id} is made.` : `The ${kind} ${made.id} is saved.`);
            location.hash = context.path(`${kind}s`);
          } catch (error) {
            touched = true;
            const rest = tellFields(fields, error.details ?? {});
            const known = Object.keys(error.details ?? {}).length > 0;
            show(head, notice("bad", isNew ? "Not made" : "Not saved", known ? rest.join("; ") || "See what is said beside the fields." : error.message));
            (firstWrong(form) ?? save).focus();
          } finally {
            save.disabled = false;
          }
        },
      },
      head,
      fixed && notice("busy", "Configured in core.toml", `Change it there, on every core. What is tried here is not kept.`),
      !fixed && !context.may("operator") && notice("busy", "Your token may look, not change", "To save takes the scope operator."),
      groups,
      h(
        "div",
        { class: "actions" },
        can && save,
        h("a", { class: "button", href: context.path(`${kind}s`) }, can ? "Cancel" : "Back"),
        can && !isNew && button("Delete", erase, { kind: "danger quiet push" }),
      ),
    );
    const outcome = h("div", { class: "outcome", "aria-live": "polite", "aria-atomic": "true" });
    const preview = h(
      "section",
      { class: "card preview stack", "aria-label": "Preview" },
      h("div", { class: "title" }, h("h2", {}, "Preview"), h("span", { class: "hint" }, "Nothing is sent.")),
      sample.element,
      h("h3", { class: "becomes" }, kind === "rule" ? "becomes this record" : "becomes this message"),
      outcome,
    );
    show(body, h("div", { class: "split" }, form, preview));
    if (!isNew && !stopped.signal.aborted) running = above?.(aloft);

    let touched = false;
    let timer;
    let asking = new AbortController();
    let shown = "";
    const look = async () => {
      asking.abort();
      asking = new AbortController();
      const sent = { [kind]: bodyOf(), [kind === "rule" ? "event" : "record"]: sample.value(), ...(isNew ? {} : { [`${kind}Id`]: id }) };
      let content;
      try {
        const results = await post(["apps", app, "preview", `${kind}s`], sent, { signal: asking.signal });
        if (touched) tellFields(fields, {});
        content = draw(results);
      } catch (error) {
        if (error.name === "AbortError" || stopped.signal.aborted) return;
        const details = error.details ?? {};
        const mine = Object.fromEntries(Object.entries(details).filter(([name]) => !["event", "record"].includes(name)));
        if (touched) tellFields(fields, mine);
        const faults = Object.entries(details).map(([name, why]) => h("li", {}, ["event", "record", "body"].includes(name) ? why.join(", ") : [h("strong", {}, fields[name]?.label ?? name), `: ${why.join(", ")}`]));
        const title = Object.keys(mine).length ? `This is no ${kind} yet` : faults.length ? "Nothing of the kind can happen" : "No preview";
        content = h("div", { class: "notice plain" }, h("strong", {}, title), faults.length ? h("ul", {}, faults) : h("p", {}, error.message));
      }
      const box = h("div", { class: "stack" }, content);
      if (box.textContent === shown) return; // or screen readers would hear it again at each key
      shown = box.textContent;
      show(outcome, box);
    };
    const later = (event) => {
      if (form.contains(event.target)) touched = true;
      clearTimeout(timer);
      timer = setTimeout(look, TYPING_MS);
    };
    for (const part of [form, preview]) {
      part.addEventListener("input", later);
      part.addEventListener("change", later);
    }
    stopped.signal.addEventListener("abort", () => { clearTimeout(timer); asking.abort(); });
    look();
  };
  const erase = async () => {
    const sure = await confirm(
      `Delete the ${kind} ${id}?`,
      kind === "rule" ? "Events are written to its topic no more. What is in the topic stays." : "Records of its topics become messages no more. A mapping that is made anew begins where it is told to.",
      "Delete it",
    );
    if (!sure) return;
    try {
      await remove(["apps", app, `${kind}s`, id]);
      say(`The ${kind} ${id} is deleted.`);
      location.hash = context.path(`${kind}s`);
    } catch (error) {
      body.prepend(notice("bad", "Not deleted", error.message));
    }
  };
  start();
  return page;
}

/** The sample's `key: value` lines as an object. */
export const headersOf = (lines) =>
  Object.fromEntries(
    lines.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
      const at = line.indexOf(":");
      return at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }),
  );

export const linesOf = (value) => value.split(/[\n,]/).map((each) => each.trim()).filter(Boolean);

export { badge };
