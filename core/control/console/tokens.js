// Access tokens: who may use the Control API, and this console. One is sent to this page when it is made here, and is gone once it was shown.

import { get, post, remove } from "./api.js";
import { h, say, show } from "./dom.js";
import { isStatic } from "./pipelines.js";
import { badge, button, check, code, confirm, empty, firstWrong, heading, live, notice, table, tell, tellFields, text } from "./ui.js";
import { time } from "./words.js";

const SCOPES = [
  ["reader", "To look at everything but secrets, the audit and this list"],
  ["operator", "To look as a reader does, and to change namespaces, rules and mappings"],
  ["security", "To look as a reader does, to change apps, keys and access tokens, and to read the audit"],
  ["secrets", "To be shown secrets where the others permit to read what they belong to"],
];
const DAY_MS = 86_400_000;
const DAYS = 90;

export function tokens(place, context) {
  place.append(heading("Access tokens", "Who may use the Control API, the command line and this console, and for what."));
  if (!context.may("security")) {
    place.append(empty("Your token may not read this list", "It takes the scope security."));
    return;
  }
  const trouble = h("div", {});
  const list = h("section", { class: "stack" });
  place.append(trouble, list);
  const revoke = async (token) => {
    const own = token.id === context.me().id ? "It is the one that you are signed in with: you will be signed out. " : "";
    const sure = await confirm(`Revoke the token ${token.name}?`, `${own}Every core refuses it from now on. This cannot be undone.`, "Revoke it");
    if (!sure) return;
    try {
      await remove(["tokens", token.id]);
      show(trouble);
      say(`The token ${token.name} is revoked.`);
    } catch (error) {
      show(trouble, notice("bad", "Not revoked", error.message));
    }
    page.again();
  };
  const page = live(list, "access tokens", (signal) => get(["tokens"], { signal }), (found) => draw(found, revoke), 15);
  place.append(context.may("secrets") ? maker(context, () => page.again()) : h("p", { class: "hint" }, "To make one takes a token with the scope secrets too, because it is shown, once."));
  return page;
}

function draw(found, revoke) {
  if (found.length === 0) return empty("There is no access token", "Whoever comes here comes with a client certificate.");
  return table(
    "Access tokens",
    [["Token"], ["State"], ["Scopes"], ["Made, UTC"], ["Expires, UTC"], ["", "end"]],
    found.map((token) => [
      [token.name, h("small", {}, code(token.id))],
      token.active ? badge("good", "Valid") : badge("off", token.status ? "Revoked" : "Expired"),
      token.scopes.join(", "),
      isStatic(token) ? "core.toml" : time(token.created),
      token.expires ? time(token.expires) : "never",
      token.active && !isStatic(token) ? button("Revoke", () => revoke(token), { kind: "quiet", key: `revoke ${token.id}`, "aria-label": `Revoke ${token.name}` }) : "",
    ]),
  );
}

/** A form that makes one. Nobody can give a scope that they do not have. */
function maker(context, again) {
  const scopes = SCOPES.filter(([scope]) => context.may(scope)).map(([scope, hint]) => [scope, check(scope, { value: scope === "reader", hint })]);
  const fields = {
    name: text("Name", { required: true, hint: "Whom or what it is for, as in ada" }),
    expires: text("Days until it expires", { type: "number", min: 1, max: 3650, step: 1, value: String(DAYS), hint: "Empty: never" }),
    scopes: scopes[0][1],
  };
  const head = h("div", {});
  const make = h("button", { type: "submit", class: "main" }, "Make the token");
  const form = h(
    "form",
    {
      class: "card stack",
      "aria-label": "A new token",
      onsubmit: async (event) => {
        event.preventDefault();
        make.disabled = true;
        const days = fields.expires.value;
        const given = {
          name: fields.name.value,
          scopes: scopes.filter(([, field]) => field.value).map(([scope]) => scope),
          expires: days === "" ? null : Date.now() + Math.trunc(Number(days)) * DAY_MS,
        };
        try {
          const made = await post(["tokens"], given, { secrets: true });
          tellFields(fields, {});
          show(head);
          fields.name.value = "";
          again();
          await tell(`The token ${made.name}`, "This is the only time that it is shown. Give it to whom it is for, and to nobody else.", made.token, "The token");
          say("The token is made.");
        } catch (error) {
          const details = error.details ?? {};
          const rest = tellFields(fields, details);
          show(head, notice("bad", "Not made", Object.keys(details).length ? rest.join("; ") || "See what is said beside the fields." : error.message));
          (firstWrong(form) ?? make).focus();
        } finally {
          make.disabled = false;
        }
      },
    },
    h("h2", {}, "A new token"),
    head,
    h("div", { class: "fields" }, fields.name.element, fields.expires.element),
    h("fieldset", {}, h("legend", {}, "Scopes"), h("div", { class: "fields" }, scopes.map(([, field]) => field.element))),
    h("div", { class: "actions" }, make),
  );
  return form;
}
