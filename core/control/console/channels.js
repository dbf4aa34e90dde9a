// Channels that are in use, with how many there are on each.

import { get } from "./api.js";
import { h, show } from "./dom.js";
import { button, empty, heading, loading, notice, table, text } from "./ui.js";
import { count } from "./words.js";

const PAGE = 100;
const COLUMNS = [
  ["connections", "Attached"],
  ["publishers", "May publish"],
  ["subscribers", "May subscribe"],
  ["presenceConnections", "May enter"],
  ["presenceSubscribers", "See presence"],
  ["presenceMembers", "Present"],
];

export function channels(place, context, app) {
  const prefix = text("Names that begin with", { mono: true });
  const body = h("div", { class: "stack", "aria-live": "polite" });
  const stopped = new AbortController();
  const load = async (after) => {
    show(body, loading("channels"));
    try {
      const found = await get(["apps", app, "channels"], { query: { prefix: prefix.value, after, limit: PAGE }, signal: stopped.signal });
      show(body, draw(found, prefix.value, after, load));
    } catch (error) {
      if (error.name !== "AbortError") show(body, notice("bad", "Could not get channels", error.message));
    }
  };
  place.append(
    heading("Channels", "Those that are open or have attachments, over all edges. Read when you ask, not all the time."),
    h(
      "form",
      { class: "row", role: "search", "aria-label": "Channels", onsubmit: (event) => { event.preventDefault(); load(); } },
      prefix.element,
      h("button", { type: "submit", class: "main" }, "Look"),
    ),
    body,
  );
  load();
  return { stop: () => stopped.abort() };
}

function draw(found, prefix, after, load) {
  if (found.length === 0) {
    return after
      ? empty("That was the last page", button("Back to the first", () => load()))
      : empty("No channel is in use", prefix ? `None whose name begins with “${prefix}”.` : "A channel is listed while somebody is attached, and for a minute after the last publish.");
  }
  return [
    table(
      "Channels",
      [["Channel", "mono"], ...COLUMNS.map(([, title]) => [title, "number"])],
      found.map((channel) => [channel.channelId, ...COLUMNS.map(([name]) => count(channel.status.occupancy.metrics[name]))]),
    ),
    h(
      "div",
      { class: "actions" },
      after && button("First page", () => load()),
      found.length === PAGE && button("Next page", () => load(found.at(-1).channelId)),
    ),
  ];
}
