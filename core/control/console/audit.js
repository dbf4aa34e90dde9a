// Who changed what, when, from where; and who was shown secrets.

import { get } from "./api.js";
import { h, show } from "./dom.js";
import { badge, button, choice, empty, heading, loading, notice, table } from "./ui.js";
import { time } from "./words.js";

const PAGE = 50;
const OUTCOMES = { applied: ["good", "Applied"], lost: ["off", "Another was first"], pending: ["busy", "Not known"], shown: ["busy", "Secrets shown"] };

export function audit(place, context) {
  place.append(heading("Audit", "Every change of the configuration, and every showing of secrets. Newest first."));
  if (!context.may("security")) {
    place.append(empty("Your token may not read the audit", "It takes the scope security."));
    return;
  }
  const app = choice("App", [["", "all apps"], ...context.apps().map((each) => [each.id, each.name || each.id])]);
  const action = choice("About", [["", "everything"], ["app.", "apps"], ["key.", "keys"], ["namespace.", "namespaces"], ["rule.", "rules"], ["mapping.", "mappings"], ["token.", "access tokens"], ["revocation.", "revoked tokens"]]);
  const body = h("div", { class: "stack", "aria-live": "polite" });
  const stopped = new AbortController();
  const load = async (before) => {
    show(body, loading("the audit"));
    try {
      const found = await get(["audit"], { query: { app: app.value, action: action.value, before, limit: PAGE }, signal: stopped.signal });
      show(body, draw(found, before, load));
    } catch (error) {
      if (error.name !== "AbortError") show(body, notice("bad", "Could not get the audit", error.message));
    }
  };
  for (const field of [app, action]) field.control.addEventListener("change", () => load());
  place.append(h("div", { class: "row", role: "search", "aria-label": "Audit" }, app.element, action.element, button("Refresh", () => load())), body);
  load();
  return { stop: () => stopped.abort() };
}

function draw(found, before, load) {
  if (found.length === 0) return empty("No entry", before ? "That was the last page." : "Nothing of the kind has been changed.");
  return [
    table(
      "Audit",
      [["When, UTC", "mono"], ["Who"], ["What"], ["Of"], ["Outcome"], ["Change", "wide"]],
      found.map((entry) => [
        time(entry.at),
        [entry.by.name || entry.by.id, h("small", {}, `${entry.by.type}, from ${entry.source || "?"} by ${entry.core}`)],
        entry.action,
        h("ul", { class: "lines flat" }, Object.entries(entry.target).map(([name, value]) => h("li", {}, h("span", {}, name), h("code", {}, value)))),
        badge(...(OUTCOMES[entry.outcome] ?? ["off", entry.outcome])),
        change(entry),
      ]),
    ),
    h("div", { class: "actions" }, before && button("Newest", () => load()), found.length === PAGE && button("Older", () => load(found.at(-1).id))),
  ];
}

function change({ id, before, after }) {
  const flat = (value, path = "") =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value).flatMap(([name, each]) => flat(each, path ? `${path}.${name}` : name))
      : [[path, value]];
  const old = new Map(flat(before ?? {}));
  const now = new Map(flat(after ?? {}));
  const names = [...new Set([...old.keys(), ...now.keys()])].filter(
    (name) => !["", "modified", "created", "running", "_links"].includes(name) && JSON.stringify(old.get(name)) !== JSON.stringify(now.get(name)),
  );
  if (names.length === 0) return "–";
  const shown = (value) => (value === undefined ? h("span", { class: "quiet-text" }, "nothing") : h("code", {}, typeof value === "string" ? value : JSON.stringify(value)));
  return h(
    "details",
    { key: id },
    h("summary", {}, before === null ? "Made" : after === null ? "Deleted" : names.length === 1 ? names[0] : `${names.length} values`),
    h("dl", { class: "difference" }, names.map((name) => h("div", {}, h("dt", {}, name), h("dd", {}, shown(old.get(name)), " → ", shown(now.get(name)))))),
  );
}
