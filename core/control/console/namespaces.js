// Namespaces: channels of one name and what begins with it, and who may not use them.

import { get, patch, post, remove } from "./api.js";
import { h, say, show } from "./dom.js";
import { isStatic } from "./pipelines.js";
import { badge, button, check, code, confirm, empty, firstWrong, heading, live, loading, notice, table, tellFields, text } from "./ui.js";
import { time } from "./words.js";

/** Instead of the name, which cannot begin so. */
const NEW = "[new]";
const WHAT = "The channels chat, chat:a, chat:b … are the namespace chat. It can be closed to clients without a clientId, or TLS.";

export function namespaces(place, context, app) {
  const fixed = isStatic(context.app());
  const can = context.may("operator") && !fixed;
  place.append(
    heading("Namespaces", WHAT, can && h("a", { class: "button main", href: `${context.path("namespaces")}/${NEW}` }, "New namespace")),
    ...(fixed ? [h("p", { class: "hint" }, `The app ${app} is configured in core.toml: its namespaces are changed there, on every core.`)] : []),
  );
  const list = h("section", { class: "stack" });
  place.append(list);
  return live(list, "namespaces", (signal) => get(["apps", app, "namespaces"], { signal }), (found) =>
    found.length === 0
      ? empty("This app has no namespace", "Channels need none: they are open to whoever has the right to them.")
      : table(
          "Namespaces",
          [["Namespace"], ["Closed to"], ["Without effect", "wide"], ["Made, UTC"]],
          found.map((each) => [
            can && !isStatic(each) ? h("a", { href: `${context.path("namespaces")}/${encodeURIComponent(each.id)}`, class: "mono", key: each.id }, each.id) : code(each.id),
            h("div", { class: "actions" }, each.authenticated && badge("busy", "Without clientId"), each.tlsOnly && badge("busy", "Without TLS"), !each.authenticated && !each.tlsOnly && "–"),
            each.withoutEffect.join(", ") || "–",
            each.created ? time(each.created) : "core.toml",
          ]),
        ),
  15);
}

/** One namespace, or a new one. What else it can be given changes nothing, and is left as it is. */
export function namespace(place, context, app, id) {
  const isNew = id === NEW;
  const asking = new AbortController();
  const path = ["apps", app, "namespaces"];
  const back = () => { location.hash = context.path("namespaces"); };
  place.append(heading(isNew ? "New namespace" : `Namespace ${id}`, WHAT));
  const body = h("div", {}, isNew ? [] : loading("the namespace"));
  place.append(body);
  const build = (found) => {
    const fields = {
      ...(isNew && { id: text("Name", { required: true, mono: true, hint: "As in chat" }) }),
      authenticated: check("Closed to clients without a clientId", { value: found?.authenticated ?? false }),
      tlsOnly: check("Closed to clients without TLS", { value: found?.tlsOnly ?? false }),
    };
    const head = h("div", {});
    const save = h("button", { type: "submit", class: "main" }, isNew ? "Make the namespace" : "Save");
    const tried = async (act, done, failed) => {
      save.disabled = true;
      try {
        await act();
        say(done);
        back();
      } catch (error) {
        const details = error.details ?? {};
        const rest = tellFields(fields, details);
        show(head, notice("bad", failed, Object.keys(details).length ? rest.join("; ") || "See what is said beside the fields." : error.message));
        (firstWrong(form) ?? save).focus();
      } finally {
        save.disabled = false;
      }
    };
    const erase = async () => {
      const sure = await confirm(`Delete the namespace ${id}?`, "Its channels stay, and are open to whoever has the right to them.", "Delete it");
      if (sure) await tried(() => remove([...path, id]), "The namespace is deleted.", "Not deleted");
    };
    const form = h(
      "form",
      {
        class: "stack",
        "aria-label": "The namespace",
        onsubmit: (event) => {
          event.preventDefault();
          const given = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value]));
          tried(() => (isNew ? post(path, given) : patch([...path, id], given)), isNew ? "The namespace is made." : "The namespace is saved.", isNew ? "Not made" : "Not saved");
        },
      },
      head,
      h("div", { class: "card stack" }, Object.values(fields).map((field) => field.element)),
      h("p", { class: "hint" }, "Clients that may not use its channels any more are sent away within two seconds, and refused."),
      h("div", { class: "actions" }, save, h("a", { class: "button", href: context.path("namespaces") }, "Cancel"), !isNew && button("Delete", erase, { kind: "danger quiet push" })),
    );
    return form;
  };
  const start = async () => {
    const found = isNew ? null : (await get(path, { signal: asking.signal })).find((each) => each.id === id);
    const can = context.may("operator") && !isStatic(context.app()) && !(found && isStatic(found));
    if (found === undefined) show(body, notice("bad", "There is no such namespace"));
    else if (!can) show(body, notice("busy", "This namespace cannot be changed here", "It is configured in core.toml, or your token lacks the scope operator."));
    else show(body, build(found));
  };
  start().catch((error) => error.name === "AbortError" || show(body, notice("bad", "Could not get the namespace", error.message)));
  return { stop: () => asking.abort() };
}
