// Apps: tenants with keys, rules and mappings of their own.

import { post } from "./api.js";
import { h, say, show } from "./dom.js";
import { badge, code, empty, heading, notice, table, tellFields, text } from "./ui.js";
import { time } from "./words.js";

export function apps(place, context) {
  place.append(heading("Apps", "Tenants: keys, rules, mappings and channels each belong to one."));
  const list = context.apps();
  place.append(
    list.length === 0
      ? empty("There is no app yet", "Make one below, or configure one in core.toml.")
      : table(
          "Apps",
          [["Name"], ["Id"], ["State"], ["Configured in"], ["Made, UTC"]],
          list.map((app) => [
            h("a", { href: `#/apps/${encodeURIComponent(app.id)}/rules`, key: app.id }, app.name || app.id),
            code(app.id),
            app.status === "enabled" ? badge("good", "Enabled") : badge("off", "Disabled"),
            app.created ? "the Control API" : "core.toml",
            time(app.created),
          ]),
        ),
  );
  if (!context.may("security")) {
    place.append(h("p", { class: "hint" }, "To make an app takes a token with the scope security."));
    return;
  }
  const name = text("Name", { required: true });
  const trouble = h("div", {});
  place.append(
    h(
      "form",
      {
        class: "card narrow stack",
        onsubmit: async (event) => {
          event.preventDefault();
          try {
            const made = await post(["accounts", context.account(), "apps"], { name: name.value });
            await context.again();
            context.use(made.id);
            say(`The app ${made.name} is there.`);
            location.hash = `#/apps/${encodeURIComponent(made.id)}/rules`;
          } catch (error) {
            const rest = tellFields({ name }, error.details ?? {});
            show(trouble, Object.keys(error.details ?? {}).length > rest.length ? [] : notice("bad", "Not made", error.message));
            name.control.focus();
          }
        },
      },
      h("h2", {}, "A new app"),
      trouble,
      name.element,
      h("button", { type: "submit", class: "main" }, "Make the app"),
    ),
  );
}
