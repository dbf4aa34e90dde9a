// Keys and what they may do. A secret is sent to this page when it is made here, and is gone once it has been shown.

import { get, patch, post } from "./api.js";
import { h, say, show } from "./dom.js";
import { isStatic } from "./pipelines.js";
import { badge, button, check, choice, code, confirm, empty, firstWrong, heading, live, loading, notice, table, tellFields, text, tell } from "./ui.js";
import { time } from "./words.js";

const OPERATIONS = [
  "publish", "subscribe", "presence", "history", "stats", "channel-metadata", "push-subscribe", "push-admin", "privileged-headers",
  "object-subscribe", "object-publish", "annotation-subscribe", "annotation-publish", "message-update-own", "message-update-any",
  "message-delete-own", "message-delete-any",
];

/** Those of them that nearly every key has something of. */
const COMMON = 4;

const WHAT = "What clients sign their tokens with, and the most that those tokens may do.";
const mayChange = (context, key) => context.may("security") && !isStatic(context.app()) && (key === null || (!key.status && !isStatic(key)));

export function keys(place, context, app) {
  const can = mayChange(context, null);
  place.append(heading("Keys", WHAT, can && h("a", { class: "button main", href: `${context.path("keys")}/new` }, "New key")));
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
  if (found.length === 0) return empty("This app has no key", "Clients need one, or a token that is signed with one.");
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
  const nameOf = (key) => (mayChange(context, key) ? h("a", { href: `${context.path("keys")}/${encodeURIComponent(key.id)}`, key: key.id }, key.name || key.id) : key.name || key.id);
  return table(
    "Keys of this app",
    [["Key"], ["State"], ["Capability", "wide"], ["Made, UTC"], ["", "end"]],
    found.map((key) => [
      [nameOf(key), h("small", {}, code(`${app}.${key.id}`))],
      key.status ? badge("off", "Revoked") : badge("good", "Enabled"),
      h("ul", { class: "lines" }, Object.entries(key.capability).map(([resource, operations]) => h("li", {}, code(resource), h("span", {}, operations.join(", "))))),
      key.created ? time(key.created) : "core.toml",
      mayChange(context, key) ? button("Revoke", () => revoke(key), { kind: "quiet", key: `revoke ${key.id}`, "aria-label": `Revoke ${key.name || key.id}` }) : "",
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

/** One key, or a new one. */
export function key(place, context, app, id) {
  const isNew = id === "new";
  const asking = new AbortController();
  const back = () => { location.hash = context.path("keys"); };
  place.append(heading(isNew ? "New key" : `Key ${app}.${id}`, WHAT));
  const body = h("div", {}, isNew ? [] : loading("the key"));
  place.append(body);
  const start = async () => {
    const found = isNew ? null : (await get(["apps", app, "keys"], { signal: asking.signal })).find((each) => each.id === id);
    if (found === undefined) show(body, notice("bad", "There is no such key"));
    else if (!mayChange(context, found)) show(body, notice("busy", "This key cannot be changed here", "It is revoked or configured in core.toml, or your token lacks the scope security."));
    else show(body, build(found));
  };
  /** A secret that has just been made is in the dialog, and in nothing else. */
  const shown = (made) =>
    made.key
      ? tell(`The key ${app}.${made.id}`, "This is the only time that it is shown here. Keep it where only those read it who need it.", made.key)
      : tell(`The key ${app}.${made.id}`, "Its secret is not shown to your token, which has no scope secrets. Whoever has that reads it on the command line: tidegate keys list.");
  const build = (found) => {
    const fields = {
      name: text("Name", { value: found?.name ?? "", hint: "As in web. For people" }),
      revocableTokens: check("Its tokens can be revoked one by one", { value: found?.revocableTokens ?? false, hint: "They last an hour at most then" }),
    };
    const permissions = lines(found?.capability ?? { "*": [] });
    const head = h("div", {});
    const save = h("button", { type: "submit", class: "main" }, isNew ? "Make the key" : "Save");
    const form = h(
      "form",
      {
        class: "stack",
        "aria-label": "The key",
        onsubmit: async (event) => {
          event.preventDefault();
          save.disabled = true;
          const given = { name: fields.name.value, revocableTokens: fields.revocableTokens.value, capability: permissions.value() };
          try {
            if (isNew) await shown(await post(["apps", app, "keys"], given, { secrets: true }));
            else await patch(["apps", app, "keys", id], given);
            say(isNew ? "The key is made." : "The key is saved.");
            back();
          } catch (error) {
            const rest = tellFields(fields, error.details ?? {});
            show(head, notice("bad", isNew ? "Not made" : "Not saved", rest.join("; ") || error.message));
            (firstWrong(form) ?? save).focus();
          } finally {
            save.disabled = false;
          }
        },
      },
      head,
      h("div", { class: "card fields" }, fields.name.element, fields.revocableTokens.element),
      permissions.element,
      h("div", { class: "actions" }, save, h("a", { class: "button", href: context.path("keys") }, "Cancel"), !isNew && button("Make another secret", () => rotate(head), { kind: "danger quiet push" })),
    );
    return form;
  };
  const rotate = async (head) => {
    const sure = await confirm("Make another secret?", "The one that it has now, and tokens signed with it, are refused within two seconds, everywhere. Who is connected is sent away, and needs the new one.", "Make another");
    if (!sure) return;
    try {
      await shown(await post(["apps", app, "keys", id, "rotate"], {}, { secrets: true }));
      back();
    } catch (error) {
      show(head, notice("bad", "Not done", error.message));
    }
  };
  start().catch((error) => error.name === "AbortError" || show(body, notice("bad", "Could not get the key", error.message)));
  return { stop: () => asking.abort() };
}

/** A capability: which operations on which channels, a group of fields for each. */
function lines(capability) {
  const list = h("div", { class: "stack" });
  const all = [];
  const add = (resource, operations) => {
    const channels = text("Channels", { value: resource, mono: true, required: true, hint: "chat:lobby, chat:*, or * for all" });
    const known = [...OPERATIONS, ...operations.filter((each) => each !== "*" && !OPERATIONS.includes(each))];
    const everything = check("everything", { value: operations.includes("*") });
    const each = known.map((operation) => [operation, check(operation, { value: operations.includes(operation) })]);
    const group = h(
      "fieldset",
      {},
      h("legend", {}, "May do this"),
      h("div", { class: "fields" }, channels.element, h("div", { class: "checks" }, each.slice(0, COMMON).map(([, field]) => field.element), everything.element)),
      h("details", { open: each.slice(COMMON).some(([, field]) => field.value) }, h("summary", {}, "More operations"), h("div", { class: "checks" }, each.slice(COMMON).map(([, field]) => field.element))),
      button("Remove", () => { all.splice(all.indexOf(line), 1); group.remove(); list.querySelector("input")?.focus(); }, { kind: "quiet" }),
    );
    const line = () => [channels.value.trim(), everything.value ? ["*"] : each.filter(([, field]) => field.value).map(([operation]) => operation)];
    all.push(line);
    list.append(group);
    return channels;
  };
  for (const [resource, operations] of Object.entries(capability)) add(resource, operations);
  return {
    element: h("div", { class: "stack" }, h("h2", {}, "What it permits"), list, h("div", {}, button("Add channels", () => add("", []).control.focus()))),
    value() {
      const found = {};
      for (const [resource, operations] of all.map((line) => line())) found[resource] = [...new Set([...(found[resource] ?? []), ...operations])];
      return found;
    },
  };
}
