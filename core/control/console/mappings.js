// Mappings: which records of topics become messages of which channels.

import { h } from "./dom.js";
import { editor, headersOf, linesOf, list, named, remember, trouble } from "./pipelines.js";
import { area, badge, check, choice, code, facts, group, line, notice, template, text } from "./ui.js";
import { ago, count, plain, pretty, time } from "./words.js";

const FORMATS = [
  ["auto", "Whatever it is"],
  ["json", "JSON"],
  ["string", "Text"],
  ["bytes", "Bytes"],
  ["avro", "Avro (Schema Registry)"],
  ["protobuf", "Protobuf (Schema Registry)"],
  ["json_schema", "JSON Schema (Schema Registry)"],
];
const THEN = {
  stop: "The partition waits at it until it can become a message.",
  skip: "It is left out and counted.",
  dlq: "It goes to the dead letter topic.",
  wait: "The partition waits until Schema Registry answers.",
};

export function mappings(place, context, app) {
  return list(place, context, app, {
    kind: "mapping",
    title: "Mappings",
    lead: "Which records of Kafka become messages of which channels.",
    none: "Mappings publish the records of your topics on channels.",
    columns: [["Mapping"], ["State"], ["Topics", "wide"], ["Channel", "wide"], ["Lag", "number"], ["Last error", "wide"]],
    row: (mapping, cores) => {
      const state = stateOf(mapping, app, cores);
      const lags = remember(`mapping ${app}/${mapping.id}`, state.lag ?? 0);
      return {
        state,
        cells: [
          named(context, "mapping", mapping),
          [badge(state.kind, state.text), state.why && h("small", {}, state.why)],
          h("ul", { class: "lines" }, (mapping.topics ?? []).map((topic) => h("li", {}, code(topic))), mapping.topicPattern && h("li", {}, "like ", code(mapping.topicPattern))),
          [template(mapping.channel), mapping.messageName && h("small", {}, "name ", template(mapping.messageName))],
          [h("span", {}, count(state.lag)), line(lags)],
          trouble(state.error, state.errorAt && `${time(state.errorAt)} UTC, ${ago(state.errorAt)}`),
        ],
      };
    },
  });
}

function stateOf(mapping, app, cores) {
  const mine = cores.flatMap((core) => core.mappings ?? []).filter((each) => each.app === app && each.id === mapping.id);
  const last = mine.map((each) => each.trouble).filter(Boolean).sort((a, b) => b.at - a.at)[0];
  const sum = (counts) => mine.flatMap((each) => Object.values(each[counts] ?? {})).reduce((all, each) => all + each, 0);
  const lost = [[sum("skipped"), "skipped"], [sum("dead"), "to the dead letter topic"]].filter(([number]) => number > 0);
  const why = lost.map(([number, what]) => `${count(number)} ${what}`).join(", ");
  const found = { why, lag: mine.length ? mine.reduce((sum, each) => sum + each.lag, 0) : null, error: last?.what, errorAt: last?.at, bad: false };
  if (mapping.status === "disabled") return { ...found, kind: "off", text: "Disabled" };
  if (mapping.paused) return { ...found, kind: "off", text: "Paused" };
  if (!mapping.running) return { ...found, kind: "busy", text: "Not running yet", why: "cores have yet to take it up" };
  const stopped = mine.flatMap((each) => each.stopped);
  if (stopped.length) {
    const first = stopped.find((each) => !each.delayed) ?? stopped[0];
    const error = `${plain(first.reason)}: ${first.detail} (${first.topic}, partition ${first.partition}, offset ${first.offset})`;
    return { ...found, bad: true, kind: "bad", text: first.delayed ? "Waiting" : "Stopped", why: stopped.length === 1 ? "one partition" : `${stopped.length} partitions`, error };
  }
  if (mine.length && !mine.some((each) => each.ready)) return { ...found, kind: "busy", text: "Starting" };
  return { ...found, kind: "good", text: "Running" };
}

export function mapping(place, context, app, id) {
  return editor(place, context, app, id, {
    kind: "mapping",
    what: "A record of a topic becomes a message on a channel.",
    make: form,
    draw: (results) => results.map(result),
  });
}

function form(found) {
  const start = found?.from ?? "latest";
  const isTime = typeof start === "number";
  const fields = {
    topics: area("Topics", { rows: 2, value: (found?.topics ?? []).join("\n"), hint: "By name, one a line" }),
    topicPattern: text("Topics like", { value: found?.topicPattern ?? "", mono: true, hint: ["RE2 expression for whole names, as in ", code("orders\\..*")] }),
    key: choice("Keys are", FORMATS, { value: found?.key ?? "auto" }),
    value: choice("Values are", FORMATS, { value: found?.value ?? "auto" }),
    from: choice("Begin with", [["latest", "what comes from now on"], ["earliest", "the oldest record"], ["time", "a time"]], { value: isTime ? "time" : start }),
    at: text("Time, UTC", { type: "datetime-local", step: 1, value: isTime ? new Date(start).toISOString().slice(0, 19) : "" }),
    channel: text("Channel", { value: found?.channel ?? "", mono: true, required: true, wide: true, hint: ["As in ", template("orders:#{key}"), ". Also ", template("#{topic} #{topic.name} #{topic.partition} #{key.field} #{value.field.sub[0]} #{headers.name}")] }),
    messageName: text("Message name", { value: found?.messageName ?? "", mono: true, hint: "A template like that. Empty: messages have no name" }),
    onFailedRecordMapping: choice("A record that cannot become a message", [["stop", "stops its partition"], ["skip", "is left out and counted"], ["dlq", "goes to a dead letter topic"]], { value: found?.onFailedRecordMapping ?? "stop" }),
    dlqTopic: text("Dead letter topic", { value: found?.dlqTopic ?? "", mono: true }),
    status: check("Enabled", { value: found?.status !== "disabled" }),
  };
  const of = (name) => fields[name].value;
  const sample = sampleRecord(found?.topics?.[0]);
  const follow = () => {
    fields.at.hide(of("from") !== "time");
    fields.dlqTopic.hide(of("onFailedRecordMapping") !== "dlq");
  };
  for (const name of ["from", "onFailedRecordMapping"]) fields[name].control.addEventListener("change", follow);
  fields.topics.control.addEventListener("input", () => sample.suggest(linesOf(of("topics"))[0]));
  follow();
  return {
    fields,
    groups: [
      group("From", fields.topics, fields.topicPattern, fields.from, fields.at, fields.key, fields.value),
      group("To", fields.channel, fields.messageName),
      group("If it fails", fields.onFailedRecordMapping, fields.dlqTopic),
      group("State", fields.status),
    ],
    sample,
    body: () => ({
      status: of("status") ? "enabled" : "disabled",
      topics: linesOf(of("topics")),
      topicPattern: of("topicPattern"),
      channel: of("channel"),
      messageName: of("messageName"),
      key: of("key"),
      value: of("value"),
      from: of("from") === "time" ? Date.parse(`${of("at")}Z`) || 0 : of("from"),
      onFailedRecordMapping: of("onFailedRecordMapping"),
      dlqTopic: of("onFailedRecordMapping") === "dlq" ? of("dlqTopic") : "",
    }),
  };
}

function sampleRecord(topic) {
  const fields = {
    topic: text("Topic", { value: topic ?? "", mono: true }),
    key: text("Key", { value: "42", mono: true }),
    value: area("Value", { value: '{"state": "paid", "total": 12.5}', rows: 2 }),
    tombstone: check("No value (a tombstone)"),
    base64: check("Key and value are base64", { hint: "For Avro, Protobuf and other bytes" }),
    headers: area("Headers", { rows: 2, hint: "One a line, as in type: order" }),
  };
  let own = topic !== undefined;
  fields.topic.control.addEventListener("input", () => { own = true; });
  const bytes = (value) => (fields.base64.value ? { base64: value } : value);
  return {
    element: group("Sample record", ...Object.values(fields)),
    suggest(given) {
      if (!own && given) fields.topic.value = given;
    },
    value: () => ({
      topic: fields.topic.value,
      key: fields.key.value === "" ? null : bytes(fields.key.value),
      value: fields.tombstone.value ? null : bytes(fields.value.value),
      headers: headersOf(fields.headers.value),
    }),
  };
}

function result(found) {
  if (found.message === undefined) {
    const why = found.reason === "not_read" ? `The mapping ${found.detail}.` : `${plain(found.reason)}${found.detail ? ` (${found.detail})` : ""}. ${THEN[found.then] ?? ""}`;
    return notice("plain", "No message", `${why[0].toUpperCase()}${why.slice(1)}`);
  }
  const { name, data, encoding, extras } = found.message;
  return h(
    "div",
    { class: "made stack" },
    facts(
      ["Channel", code(found.channel)],
      ["Name", name === undefined ? h("span", { class: "quiet-text" }, "none") : code(name)],
      encoding && ["Encoding", code(encoding)],
      extras && ["Extras", code(JSON.stringify(extras))],
    ),
    h("h3", {}, "Data"),
    h("pre", { tabindex: "0", "aria-label": "Data" }, data === undefined ? "(none)" : pretty(data)),
  );
}
