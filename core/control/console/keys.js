// Keys and what they may do. Their secrets are not sent to this page at all.

import { get, post } from "./api.js";
import { h, say, show } from "./dom.js";
import { badge, button, choice, code, confirm, empty, heading, live, notice, table, text, tellFields } from "./ui.js";
import { time } from "./words.js";

const OPERATIONS = [
  "publish", "subscribe", "presence", "history", "stats", "channel-metadata", "push-subscribe", "push-admin", "privileged-headers",
  "object-subscribe", "object-publish", "annotation-subscribe", "annotation-publish", "message-update-own", "message-update-any",
  "message-delete-own", "message-delete-any",
];

export function keys(place, context, app) {
  place.append(heading("Keys", "What clients sign their tokens with, and the most that those tokens may do. Make and rotate keys with the tidegate command line, where their secrets are shown."));
  const asking = may(app);
  const list = h("section", { class: "stack" }, h("h2", {}, "Keys of this app"));
  place.append(asking.element, list);
  const page = live(list, "keys", (signal) => get(["apps", app, "keys"], { signal }), (found) => {
    asking.offer(found);
    return draw(found, context, app, () => page.again());
  }, 15);
  return page;
}

function draw(found, context, app, again) {
  if (found.length === 0) return empty("This app has no key", code(`tidegate keys create ${app} --name web --capability '{"chat:*":["subscribe"]}'`));
  const revoke = async (key) => {
    const sure = await confirm(`Revoke the key ${app}.${key.id}?`, "Everybody who is connected with it, or with a token of it, is disconnected within two seconds and refused from then on. This cannot be undone.", "Revoke it");
    if (!sure) return;
    try {
      await post(["apps", app, "keys", key.id, "revoke"], {});
      say(`The key ${key.id} is revoked.`);
    } catch (error) {
      say(error.message);
      document.getElementById("main").prepend(notice("bad", "Not revoked", error.message));
    }
    again();
  };
  return table(
    "Keys of this app",
    [["Key"], ["State"], ["Capability", "wide"], ["Made, UTC"], ["", "end"]],
    found.map((key) => [
      [key.name || key.id, h("small", {}, code(`${app}.${key.id}`))],
      key.status ? badge("off", "Revoked") : badge("good", "Enabled"),
      h("ul", { class: "lines" }, Object.entries(key.capability).map(([resource, operations]) => h("li", {}, code(resource), h("span", {}, operations.join(", "))))),
      key.created ? time(key.created) : "core.toml",
      context.may("security") && !key.status && key.created ? button("Revoke", () => revoke(key), { kind: "quiet", key: `revoke ${key.id}`, "aria-label": `Revoke ${key.name || key.id}` }) : "",
    ]),
  );
}

/** May this key do this on that channel? */
function may(app) {
  const key = choice("Key", []);
  const operation = choice("Operation", OPERATIONS.map((each) => [each, each]));
  const channel = text("Channel", { mono: true, required: true });
  const verdict = h("div", { "aria-live": "polite" });
  const element = h(
    "form",
    {
      class: "card stack",
      "aria-label": "May this key do this on that channel?",
      onsubmit: async (event) => {
        event.preventDefault();
        try {
          const found = await get(["apps", app, "keys", key.value, "can"], { query: { operation: operation.value, channel: channel.value } });
          for (const field of [key, operation, channel]) field.wrong("");
          const text_ = found.because.replace(/^(yes|no): /, "");
          show(verdict, notice(found.permitted ? "good" : "bad plain", found.permitted ? "Yes" : "No", `${text_[0].toUpperCase()}${text_.slice(1)}.`));
          verdict.firstChild?.removeAttribute("role");
        } catch (error) {
          show(verdict, tellFields({ operation, channel }, error.details ?? {}).length || !Object.keys(error.details ?? {}).length ? notice("bad", "No answer", error.message) : []);
        }
      },
    },
    h("h2", {}, "May this key do this on that channel?"),
    h("div", { class: "row" }, key.element, operation.element, channel.element, h("button", { type: "submit", class: "main" }, "Ask")),
    verdict,
  );
  return {
    element,
    offer(found) {
      const before = key.value;
      key.control.replaceChildren(...found.map((each) => h("option", { value: each.id }, each.name && each.name !== each.id ? `${each.name} (${each.id})` : each.id)));
      if (found.some((each) => each.id === before)) key.value = before;
      element.hidden = found.length === 0;
    },
  };
}
