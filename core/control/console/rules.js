// Rules: what of the channels goes to which topics.

import { h } from "./dom.js";
import { editor, headersOf, linesOf, list, named, remember, trouble } from "./pipelines.js";
import { area, badge, check, choice, code, facts, group, line, notice, template, text } from "./ui.js";
import { ago, count, many, plain, pretty, time } from "./words.js";

const SOURCES = [
  ["channel.message", "Messages"],
  ["channel.presence", "Presence: enter, update, leave"],
  ["channel.lifecycle", "Channels that open and close"],
  ["channel.occupancy", "Occupancy: how many there are"],
];

const OAUTH = "oauthbearer";

const SCHEMAS = [["", "none"], ["avro", "Avro"], ["protobuf", "Protobuf"], ["json_schema", "JSON Schema"]];

export function rules(place, context, app) {
  return list(place, context, app, {
    kind: "rule",
    title: "Rules",
    lead: "What of the channels is written to which topics of Kafka.",
    none: "Rules write messages, presence, lifecycle and occupancy of channels to your topics.",
    columns: [["Rule"], ["State"], ["What"], ["Channels"], ["To", "wide"], ["Behind", "number"], ["Last error", "wide"]],
    row: (rule, cores) => {
      const state = stateOf(rule, app, cores);
      const lags = remember(`rule ${app}/${rule.id}`, state.behind);
      const source = SOURCES.find(([type]) => type === rule.source.type)?.[1] ?? rule.source.type;
      return {
        state,
        cells: [
          named(context, "rule", rule),
          [badge(state.kind, state.text), state.why && h("small", {}, state.why)],
          source.split(":")[0],
          rule.source.channelFilter ? code(rule.source.channelFilter) : "all",
          [template(rule.target.routingKey), h("small", {}, rule.target.brokers?.length ? rule.target.brokers.join(", ") : "this cluster", rule.requestMode === "batch" && ", in batches")],
          [h("span", {}, count(state.behind)), line(lags)],
          trouble(state.error, state.errorAt && `${time(state.errorAt)} UTC, ${ago(state.errorAt)}`),
        ],
      };
    },
  });
}

/** How long a rule that has dropped a record is shown as one that does. */
const LATELY_MS = 600_000;

/** Put together from what all cores say of their partitions. */
function stateOf(rule, app, cores) {
  const label = `${app}/${rule.id}`;
  const parked = cores.flatMap((core) => core.parkedRules ?? []).filter((each) => each.rule === label);
  const mine = cores.flatMap((core) => core.rules ?? []).filter((each) => each.rule === label);
  const last = mine.map((each) => each.trouble).filter(Boolean).sort((a, b) => b.at - a.at)[0];
  const behind = parked.reduce((sum, each) => sum + each.behind, 0);
  const dropped = mine.flatMap((each) => Object.values(each.dropped)).reduce((sum, each) => sum + each, 0);
  const found = { behind, error: last?.what, errorAt: last?.at, bad: false, why: dropped > 0 && `${many(dropped, "record")} dropped` };
  if (rule.status === "disabled") return { ...found, kind: "off", text: "Disabled" };
  if (!rule.running) return { ...found, kind: "busy", text: "Not running yet", why: "cores have yet to take it up" };
  if (parked.length) {
    const waits = parked.find((each) => !each.catchingUp) ?? parked[0];
    const since = Math.min(...parked.map((each) => each.since));
    const why = `${plain(waits.reason)}${waits.topic ? ` ${waits.topic}` : ""}`;
    const busy = parked.every((each) => each.catchingUp === each.partitions.length);
    return { ...found, bad: !busy, kind: busy ? "busy" : "bad", text: busy ? "Catching up" : "Parked", why: `since ${time(since)} UTC`, error: found.error ?? why, errorAt: found.errorAt };
  }
  if (dropped > 0 && last && Date.now() - last.at < LATELY_MS) return { ...found, bad: true, kind: "bad", text: "Drops records" };
  return { ...found, kind: "good", text: "Running" };
}

export function rule(place, context, app, id) {
  return editor(place, context, app, id, {
    kind: "rule",
    what: "An event of a channel becomes a record of a topic.",
    make: form,
    draw: (results) => results.map(result),
  });
}

function form(found) {
  const { source = {}, target = {} } = found ?? {};
  const sasl = target.auth?.sasl;
  const known = target.schema ?? {};
  const fields = {
    "source.type": choice("What", SOURCES, { value: source.type ?? "channel.message" }),
    "source.channelFilter": text("Channels", { value: source.channelFilter ?? "", mono: true, hint: ["RE2 expression, searched anywhere in the name, as in ", code("^chat:"), ". Empty: every channel"] }),
    "target.routingKey": text("Topic and key", { value: target.routingKey ?? "", mono: true, required: true, wide: true, hint: ["topic:key, as in ", template("orders:#{channelName}"), ". Also ", template("#{message.name} #{message.clientId} #{message.extras.headers['name']}")] }),
    requestMode: choice("Records", [["single", "One for each event"], ["batch", "Several events share one"]], { value: found?.requestMode || "single" }),
    "target.enveloped": choice("Content", [["yes", "An envelope"], ["no", "The payload alone"]], { value: target.enveloped === false ? "no" : "yes", hint: "An envelope tells source, channel and rule as well; with the payload alone, headers do" }),
    "target.format": choice("Format of envelopes", [["json", "JSON"], ["msgpack", "MessagePack"]], { value: target.format || "json" }),
    "target.headers": area("Headers of each record", { rows: 2, value: (target.headers ?? []).map((each) => `${each.name}: ${each.value}`).join("\n"), hint: "One a line, as in team: web" }),
    "target.schema.subject": text("Subject", { value: known.subject ?? "", mono: true, hint: "As in orders-value" }),
    "target.schema.version": text("Version", { type: "number", min: 1, step: 1, value: known.version || "", hint: "Empty: the latest" }),
    "target.schema.onInvalid": choice("A payload that is not valid", [["drop", "Is dropped and counted"], ["dlq", "Goes to the dead letter topic"]], { value: known.onInvalid ?? "drop" }),
    "target.schema.dlqTopic": text("Dead letter topic", { value: known.dlqTopic ?? "", mono: true }),
    // Behind those whose names begin with its own: what is wrong with all of it is told here.
    "target.schema": choice("Schema", SCHEMAS, { value: known.format ?? "", hint: "Of Schema Registry: payloads are checked and encoded by it. The preview shows them before" }),
    status: check("Enabled", { value: found?.status !== "disabled" }),
    "target.brokers": area("Brokers", { rows: 2, value: (target.brokers ?? []).join("\n"), hint: "host:port, one a line. Empty: this cluster, exactly once" }),
    // As the core has it where it is not said: with a login on, or its password would cross the network in clear.
    "target.tls": check("Over TLS", { value: target.tls ?? sasl !== undefined }),
    "target.auth.sasl.mechanism": choice("SASL", [["", "none"], ["plain", "PLAIN"], ["scram-sha-256", "SCRAM-SHA-256"], ["scram-sha-512", "SCRAM-SHA-512"], [OAUTH, "OAUTHBEARER"]], { value: sasl?.mechanism ?? "" }),
    "target.auth.sasl.username": text("User name", { value: sasl?.username ?? "", hint: "For OAUTHBEARER the client’s id, and its secret" }),
    "target.auth.sasl.password": text("Password", { type: "password", hint: found && sasl ? "Empty: it stays what it is. To be given again when brokers, TLS, authority or SASL change" : undefined }),
    "target.auth.sasl.tokenEndpoint": text("Token endpoint", { value: sasl?.tokenEndpoint ?? "", mono: true, hint: "https://…" }),
    "target.auth.sasl.tokenCa": area("Its certificate authority", { rows: 2, value: sasl?.tokenCa ?? "", hint: "In PEM. Empty: those that the cores’ machines trust" }),
    "target.auth.sasl.scope": text("Scope", { value: sasl?.scope ?? "", mono: true }),
    "target.ca": area("Certificate authority", { rows: 2, value: target.ca ?? "", hint: "In PEM. Empty: those that the cores’ machines trust" }),
  };
  const of = (name) => fields[name].value;
  const mechanism = fields["target.auth.sasl.mechanism"];
  let login = of("target.auth.sasl.mechanism");
  mechanism.control.addEventListener("change", () => {
    if (login === "") fields["target.tls"].value = true;
    login = mechanism.value;
  });
  const follow = () => {
    for (const name of ["username", "password"]) fields[`target.auth.sasl.${name}`].hide(mechanism.value === "");
    for (const name of ["tokenEndpoint", "tokenCa", "scope"]) fields[`target.auth.sasl.${name}`].hide(mechanism.value !== OAUTH);
    for (const name of ["subject", "version", "onInvalid"]) fields[`target.schema.${name}`].hide(of("target.schema") === "");
    fields["target.schema.dlqTopic"].hide(of("target.schema") === "" || of("target.schema.onInvalid") !== "dlq");
    fields["target.ca"].hide(!of("target.tls"));
    sample.follow(of("source.type"));
  };
  const sample = sampleEvent(source.channelFilter);
  const loginOf = () => {
    const given = { mechanism: mechanism.value, username: of("target.auth.sasl.username"), password: of("target.auth.sasl.password") || null };
    return given.mechanism === OAUTH ? { ...given, tokenEndpoint: of("target.auth.sasl.tokenEndpoint"), tokenCa: of("target.auth.sasl.tokenCa").trim(), scope: of("target.auth.sasl.scope"), extensions: sasl?.extensions } : given;
  };
  const schemaOf = () => ({
    format: of("target.schema"),
    subject: of("target.schema.subject").trim(),
    version: Number(of("target.schema.version")),
    onInvalid: of("target.schema.onInvalid"),
    dlqTopic: of("target.schema.onInvalid") === "dlq" ? of("target.schema.dlqTopic").trim() : "",
  });
  const elsewhere = h("details", { class: "card", open: (target.brokers ?? []).length > 0 }, h("summary", {}, "Another cluster"), h("div", { class: "fields" }, Object.keys(fields).filter((name) => /^target\.(brokers|tls|ca|auth)/.test(name)).map((name) => fields[name].element)));
  for (const name of ["source.type", "target.auth.sasl.mechanism", "target.tls", "target.schema", "target.schema.onInvalid"]) fields[name].control.addEventListener("change", follow);
  follow();
  return {
    fields,
    groups: [
      group("From", fields["source.type"], fields["source.channelFilter"]),
      group("To", fields["target.routingKey"], fields.requestMode, fields["target.enveloped"], fields["target.format"], fields["target.headers"]),
      group("Payloads by schema", ...["", ".subject", ".version", ".onInvalid", ".dlqTopic"].map((name) => fields[`target.schema${name}`])),
      elsewhere,
      group("State", fields.status),
    ],
    sample,
    body: () => ({
      ruleType: "kafka",
      requestMode: of("requestMode"),
      status: of("status") ? "enabled" : "disabled",
      source: { type: of("source.type"), channelFilter: of("source.channelFilter") },
      target: {
        routingKey: of("target.routingKey"),
        enveloped: of("target.enveloped") === "yes",
        format: of("target.format"),
        headers: Object.entries(headersOf(of("target.headers"))).map(([name, value]) => ({ name, value })),
        brokers: linesOf(of("target.brokers")),
        tls: of("target.tls"),
        ca: of("target.tls") ? of("target.ca").trim() : "",
        auth: mechanism.value === "" ? null : { sasl: loginOf() },
        schema: of("target.schema") === "" ? null : schemaOf(),
      },
    }),
  };
}

/** What clients send when they give JSON text: an object or list is one, anything else is text. */
function payload(value) {
  try {
    const found = JSON.parse(value);
    return typeof found === "object" && found !== null ? found : value;
  } catch {
    return value;
  }
}

function sampleEvent(filter) {
  const guess = (filter ?? "").replace(/^\^/, "").replace(/[$].*$/, "");
  const fields = {
    channel: text("Channel", { value: /^[\w:-]+$/.test(guess) ? `${guess}${guess.endsWith(":") ? "lobby" : ""}` : "chat:lobby", mono: true }),
    name: text("Name", { value: "greeting" }),
    action: choice("Action", [["enter", "enter"], ["update", "update"], ["leave", "leave"]]),
    event: choice("Event", [["channel.opened", "channel.opened"], ["channel.closed", "channel.closed"]]),
    clientId: text("Client id", { value: "bob" }),
    connections: text("Attached", { type: "number", min: 0, value: "3" }),
    data: area("Data", { value: '{"text": "hello"}', rows: 2 }),
  };
  const of = {
    "channel.message": ["channel", "name", "clientId", "data"],
    "channel.presence": ["channel", "action", "clientId", "data"],
    "channel.lifecycle": ["channel", "event"],
    "channel.occupancy": ["channel", "connections"],
  };
  let type = "channel.message";
  const given = (value) => (value === "" ? undefined : value);
  return {
    element: group("Sample event", ...Object.values(fields)),
    follow(chosen) {
      type = chosen;
      for (const [name, field] of Object.entries(fields)) field.hide(!of[type].includes(name));
    },
    value() {
      const channel = fields.channel.value;
      const data = given(payload(fields.data.value));
      const clientId = given(fields.clientId.value);
      if (type === "channel.message") return { channel, messages: { name: given(fields.name.value), clientId, data } };
      if (type === "channel.presence") {
        const encoded = typeof data === "object" ? { data: JSON.stringify(data), encoding: "json" } : { data };
        return { channel, presence: { action: fields.action.value, clientId, ...encoded } };
      }
      if (type === "channel.lifecycle") return { channel, lifecycle: fields.event.value };
      return { channel, occupancy: { connections: Math.max(0, Math.trunc(Number(fields.connections.value) || 0)) } };
    },
  };
}

function result(found) {
  if (found.result === "none") return notice("plain", "No record", `${found.reason[0].toUpperCase()}${found.reason.slice(1)}.`);
  const value = found.decoded !== undefined ? JSON.stringify(found.decoded, null, 2) : found.value !== undefined ? pretty(found.value) : found.valueBase64;
  const label = found.decoded !== undefined ? "Value, from MessagePack" : found.value !== undefined ? "Value" : "Value, as base64";
  return h(
    "div",
    { class: "made stack" },
    facts(
      ["Topic", code(found.topic)],
      ["Key", found.key === null ? h("span", { class: "quiet-text" }, "none") : code(found.key)],
      found.headers.length > 0 && ["Headers", h("ul", { class: "lines" }, found.headers.map((each) => h("li", {}, code(each.name), h("span", {}, each.value))))],
    ),
    h("h3", {}, label),
    h("pre", { tabindex: "0", "aria-label": label }, value === "" ? "(empty)" : value),
  );
}
