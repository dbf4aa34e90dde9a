// Where everything starts: signing in, the frame around each page, and which page it is.

import { forgetToken, get, onSignedOut, signedIn, useToken } from "./api.js";
import { apps } from "./apps.js";
import { audit } from "./audit.js";
import { channels } from "./channels.js";
import { cluster } from "./cluster.js";
import { h, s, say, show } from "./dom.js";
import { key, keys } from "./keys.js";
import { mappings, mapping } from "./mappings.js";
import { namespace, namespaces } from "./namespaces.js";
import { rules, rule } from "./rules.js";
import { tokens } from "./tokens.js";
import { empty, notice, text } from "./ui.js";

const shell = document.getElementById("shell");
const world = { me: null, apps: [], app: null, core: "" };
let page = null;

// --- signing in --------------------------------------------------------------------------------------------------------------------------

function signIn(why) {
  page?.stop?.();
  page = null;
  document.title = "Sign in · Tidegate console";
  const token = text("Access token", { type: "password", mono: true, required: true, hint: "As in “id.secret”. Scopes: reader to look, operator to change rules and mappings, security for keys, access tokens and the audit, secrets to be shown new keys and tokens." });
  const trouble = h("div", {});
  const go = h("button", { type: "submit", class: "main" }, "Sign in");
  const form = h(
    "form",
    {
      class: "card narrow stack",
      onsubmit: async (event) => {
        event.preventDefault();
        if (!/^[\x21-\x7e]+$/.test(token.value.trim())) {
          token.wrong("A token is one word of letters, digits and signs.");
          token.control.focus();
          return;
        }
        go.disabled = true;
        useToken(token.value.trim());
        try {
          world.me = await get(["me"], { secrets: true }); // or the answer would not say whether it has that scope
          token.value = "";
          await enter();
        } catch (error) {
          forgetToken();
          show(trouble, notice("bad", "Not signed in", error.status === 401 ? "This core does not take the token. It may be mistyped, revoked or expired." : error.message));
          token.control.focus();
        } finally {
          go.disabled = false;
        }
      },
    },
    h("div", { class: "brand big" }, mark(), "Tidegate"),
    h("h1", { id: "title", tabindex: "-1" }, "Sign in to the console"),
    why && notice("busy", why),
    trouble,
    token.element,
    h("p", { class: "hint" }, "The token stays in this page’s memory: no cookie, no storage. Reloading or closing the page forgets it."),
    go,
  );
  show(shell, h("main", { id: "main", class: "welcome" }, form));
  token.control.focus();
}

onSignedOut(() => {
  if (world.me === null) return;
  signOut("You were signed out: the token does not count any more.");
});

function signOut(why) {
  forgetToken();
  world.me = null;
  signIn(why);
  say(why ?? "Signed out");
}

// The page must not come back with its token when somebody steps back to it
addEventListener("pagehide", () => { forgetToken(); world.me = null; });
addEventListener("pageshow", (event) => { if (event.persisted) signIn(); });

// --- the frame ---------------------------------------------------------------------------------------------------------------------------

const ICONS = {
  cluster: "M3 4h14v5H3zM3 11h14v5H3zM6 6.5h.1M6 13.5h.1",
  rules: "M3 10h9M9 6l4 4-4 4M16 4v12",
  mappings: "M17 10H8m3-4-4 4 4 4M4 4v12",
  keys: "M12 8a4 4 0 1 0-3 3.9L10.500 13H12v1.500h1.500V16H17v-3l-5.100-5Z",
  namespaces: "M4 4h5v5H4zM11 4h5M11 8h5M4 13h12M4 16h12",
  channels: "M4 16V9m4 7V4m4 12V7m4 9v-5",
  audit: "M5 3h7l3 3v11H5zM8 9h4M8 12h4",
  tokens: "M3 5h14v10H3zM6 9h4M6 12h2.500M13.500 9.500a1.500 1.500 0 1 0 0 .1M13.500 11.500v1.500",
  apps: "M3 3h6v6H3zM11 3h6v6h-6zM3 11h6v6H3zM11 11h6v6h-6z",
};
const icon = (name) => s("svg", { viewBox: "0 0 20 20", class: "icon", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));
const mark = () =>
  s(
    "svg",
    { viewBox: "0 0 32 32", class: "mark", "aria-hidden": "true" },
    s("rect", { width: 32, height: 32, rx: 8 }),
    s("path", { d: "M9 7v9M16 7v9M23 7v9M6 21c3.3-2.6 6.7-2.6 10 0s6.700 2.600 10 0M6 26c3.300-2.600 6.700-2.600 10 0s6.700 2.600 10 0" }),
  );

const PAGES = [
  ["cluster", "Nodes", null],
  ["apps", "Apps", null],
  ["rules", "Rules", "app"],
  ["mappings", "Mappings", "app"],
  ["keys", "Keys", "app"],
  ["namespaces", "Namespaces", "app"],
  ["channels", "Channels", "app"],
  ["tokens", "Access tokens", null],
  ["audit", "Audit", null],
];

const path = (name) => (PAGES.find(([each]) => each === name)[2] ? `#/apps/${encodeURIComponent(world.app ?? "")}/${name}` : `#/${name}`);

async function enter() {
  await learnApps();
  frame();
  await route();
}

async function learnApps() {
  world.apps = await get(["accounts", world.me.account.id, "apps"]);
  if (!world.apps.some((app) => app.id === world.app)) world.app = world.apps[0]?.id ?? null;
}

function frame() {
  const item = ([name, title]) => h("li", {}, h("a", { href: path(name), id: `to-${name}` }, icon(name), title));
  const choose = h(
    "select",
    {
      id: "app",
      onchange: () => {
        world.app = choose.value;
        const inApp = location.hash.match(/^#\/apps\/[^/]*\/(\w+)/);
        location.hash = inApp ? path(inApp[1]) : path("rules");
        frameLinks();
      },
    },
    world.apps.map((app) => h("option", { value: app.id }, app.name && app.name !== app.id ? `${app.name} (${app.id})` : app.id)),
  );
  if (world.app) choose.value = world.app;
  show(
    shell,
    h(
      "div",
      { class: "frame" },
      h(
        "div",
        { class: "side" },
        h("div", { class: "brand" }, mark(), "Tidegate"),
        h(
          "nav",
          { "aria-label": "Pages" },
          h("ul", {}, PAGES.slice(0, 2).map(item)),
          h("div", { class: "of-app" }, h("label", { for: "app" }, "App"), choose),
          h("ul", {}, PAGES.slice(2, 7).map(item)),
          h("ul", {}, PAGES.slice(7).map(item)),
        ),
        h(
          "div",
          { class: "who" },
          h("p", {}, h("strong", {}, world.me.token.name || world.me.token.id), h("span", {}, world.me.token.scopes.filter((one) => one !== "secrets").join(", ") || "no scope")),
          h("button", { type: "button", onclick: () => signOut() }, "Sign out"),
        ),
      ),
      h("main", { id: "main", tabindex: "-1" }),
    ),
  );
}

function frameLinks() {
  for (const [name] of PAGES) document.getElementById(`to-${name}`)?.setAttribute("href", path(name));
}

// --- which page --------------------------------------------------------------------------------------------------------------------------

const may = (scope) => world.me.token.scopes.includes(scope);
const context = {
  may,
  path,
  me: () => world.me.token,
  account: () => world.me.account.id,
  apps: () => world.apps,
  app: () => world.apps.find((app) => app.id === world.app),
  again: async () => { await learnApps(); frame(); },
  use: (app) => { world.app = app; frame(); },
};

async function route() {
  if (!signedIn()) return;
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  let [name, app, inner, id] = parts;
  if (name === "apps" && inner) {
    if (app !== world.app && world.apps.some((one) => one.id === app)) {
      world.app = app;
      frame();
    }
    name = inner;
  }
  page?.stop?.();
  const main = document.getElementById("main");
  main.replaceChildren();
  frameLinks();
  for (const [each] of PAGES) document.getElementById(`to-${each}`)?.removeAttribute("aria-current");
  document.getElementById(`to-${name}`)?.setAttribute("aria-current", "page");
  const ofApp = PAGES.find(([each]) => each === name)?.[2];
  if (ofApp && world.app === null) {
    show(main, empty("There is no app yet", "Rules, mappings, keys and channels belong to apps. ", h("a", { href: "#/apps" }, "Make one"), "."));
    return;
  }
  const pages = { cluster, apps, rules: id === undefined ? rules : rule, mappings: id === undefined ? mappings : mapping, keys: id === undefined ? keys : key, namespaces: id === undefined ? namespaces : namespace, channels, tokens, audit };
  if (pages[name] === undefined) {
    location.replace("#/cluster");
    return;
  }
  page = pages[name](main, context, world.app, id) ?? null;
  const title = document.getElementById("title");
  document.title = `${title?.textContent ?? name} · Tidegate console`;
  title?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
});
signIn();
