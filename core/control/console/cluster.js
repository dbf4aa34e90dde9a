// Cores, edges and who owns which partition: what `tidegate status` shows.

import { get } from "./api.js";
import { h } from "./dom.js";
import { badge, empty, facts, heading, live, notice, table } from "./ui.js";
import { count, many, ranges } from "./words.js";

export function cluster(place) {
  place.append(heading("Nodes", "Cores, edges, and which core owns which partition of the log. Asked again every five seconds."));
  return live(place, "the nodes", (signal) => get(["cluster"], { signal }), draw, 5);
}

function draw({ cores, edges, partitions, peers }) {
  const unowned = partitions.filter((each) => each.owners.length === 0).map((each) => each.partition);
  const twice = partitions.filter((each) => each.owners.length > 1).map((each) => each.partition);
  const silent = cores.filter((core) => core.error);
  return [
    ...silent.map((core) => notice("bad", `${core.url} does not answer`, core.error)),
    peers > 0 && unowned.length > 0 && silent.length === 0 && notice("busy", `Without an owner: partitions ${ranges(unowned)}`, "For some seconds after a core came or went that is normal. Until then their rules and graces wait."),
    twice.length > 0 && notice("busy", `With two owners: partitions ${ranges(twice)}`, "For some seconds after a core came or went that is normal: the log takes the work of one of them only."),
    h("h2", {}, "Cores"),
    h("div", { class: "cards" }, cores.filter((core) => !core.error).map(card)),
    peers === 0 && h("p", { class: "hint" }, "This core knows no others. Name their admin addresses in ", h("code", {}, "admin.peers"), " of its core.toml to see them here."),
    h("h2", {}, "Partitions"),
    partitions.length === 0 ? empty("Not known yet", "The core is starting.") : owners(partitions),
    h("h2", {}, "Edges"),
    edges.length === 0
      ? empty("No edge", "No edge process has a lease or a link. Edges dial the link address of a core.")
      : table(
          "Edges",
          [["Edge"], ["Process"], ["State"], ["Lease, s", "number"], ["Linked to"], ["Sessions", "number"]],
          edges.map((edge) => [
            h("span", { class: "mono" }, edge.edge.replace(/^spiffe:\/\/[^/]*\/edge\//, "")),
            h("code", {}, edge.boot.slice(0, 8)),
            edge.alive ? badge("good", "Alive") : badge("off", "Gone"),
            edge.ageMs === null ? "–" : (edge.ageMs / 1000).toFixed(1),
            edge.cores.join(", ") || "–",
            count(edge.sessions),
          ]),
        ),
  ];
}

function card(core) {
  if (!core.partitions) return h("section", { class: "card" }, h("h3", {}, core.node ?? core.url), badge("busy", "Starting"));
  const lags = core.partitions.map((each) => each.lag).filter((lag) => lag !== null);
  const owned = core.partitions.filter((each) => each.owned).map((each) => each.partition);
  return h(
    "section",
    { class: "card" },
    h("div", { class: "title" }, h("h3", {}, core.node), core.ready ? badge("good", "Ready") : badge("bad", "Not ready")),
    facts(
      ["Owns", owned.length ? `${ranges(owned)} of ${core.partitions.length}` : "no partition"],
      ["Behind the log", lags.length ? many(lags.reduce((a, b) => a + b, 0), "record") : "not known"],
      ["Links", count(core.links.length)],
      ["Sessions", count(core.sessions)],
      ["Connections", count(core.connections)],
      ["Open channels", count(core.channels)],
      ["Publishes under way", count(core.appends)],
    ),
  );
}

function owners(partitions) {
  const names = [...new Set(partitions.flatMap((each) => each.owners))].sort();
  const rows = names.map((name) => {
    const mine = partitions.filter((each) => each.owners.includes(name));
    return [
      h("span", {}, h("span", { class: `swatch owner-${names.indexOf(name) % 6}`, "aria-hidden": "true" }), name),
      ranges(mine.map((each) => each.partition)),
      count(mine.length),
      count(mine.reduce((sum, each) => sum + (each.lag ?? 0), 0)),
    ];
  });
  const lost = partitions.filter((each) => each.owners.length === 0);
  if (lost.length) rows.push(["no known owner", ranges(lost.map((each) => each.partition)), count(lost.length), "–"]);
  return [
    h(
      "div",
      { class: "strip", "aria-hidden": "true" },
      partitions.map((each) => h("span", { class: each.owners.length ? `owner-${names.indexOf(each.owners[0]) % 6}` : "owner-none", title: `${each.partition}: ${each.owners.join(", ") || "no known owner"}` }, each.partition)),
    ),
    table("Partitions by owner", [["Owner"], ["Partitions"], ["How many", "number"], ["Slowest core behind, records", "number"]], rows),
  ];
}
