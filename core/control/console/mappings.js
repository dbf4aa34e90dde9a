// Mappings: which records of topics become messages of which channels.

import { get, post } from "./api.js";
import { h, say, show } from "./dom.js";
import { editor, headersOf, linesOf, list, named, remember, trouble } from "./pipelines.js";
import { area, badge, button, check, choice, code, confirm, facts, firstWrong, group, line, live, notice, template, tellFields, text } from "./ui.js";
import { ago, count, many, plain, pretty, time } from "./words.js";

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
    above: (aloft) => steering(aloft, context, app, id),
  });
}

const PLACES = [["earliest", "the oldest record"], ["latest", "what comes from now on"], ["time", "a time"], ["offset", "an offset"]];

/** How it runs, and what can be done about that while it does: hold it, let it go on, move it. Those of core.toml too. */
function steering(place, context, app, id) {
  const can = context.may("operator");
  const trouble = h("div", {});
  const state = h("div", {});
  const move = can && moving(app, id, (what) => done(what));
  place.append(h("section", { class: "card stack", "aria-label": "While it runs" }, h("h2", {}, "While it runs"), trouble, state, move && move.element));
  const done = (what) => { show(trouble); say(what); page.again(); };
  const hold = async (paused) => {
    try {
      await post(["apps", app, "mappings", id, paused ? "pause" : "resume"], {});
      done(paused ? "It is paused." : "It goes on.");
    } catch (error) {
      show(trouble, notice("bad", paused ? "Not paused" : "Not resumed", error.message));
    }
  };
  const load = async (signal) => Promise.all([get(["apps", app, "mappings", id], { signal }), get(["cluster"], { signal })]);
  const page = live(state, "its state", load, ([found, { cores }]) => {
    const now = stateOf(found, app, cores);
    const mine = cores.flatMap((core) => core.mappings ?? []).filter((each) => each.app === app && each.id === id);
    const stopped = mine.flatMap((each) => each.stopped);
    const due = mine.reduce((sum, each) => sum + each.seeksDue, 0);
    const behind = found.seek && `It was told at ${time(found.seek.at)} UTC to go on with ${moved(found.seek)}${due ? `; still to be done on ${many(due, "partition")}` : ""}.`;
    return [
      h(
        "div",
        { class: "actions" },
        badge(now.kind, now.text),
        h("span", {}, [now.lag !== null && `${many(now.lag, "record")} behind`, now.why].filter(Boolean).join(", ")),
        can && button(found.paused ? "Resume" : "Pause", () => hold(!found.paused), { key: "hold", kind: "push" }),
      ),
      stopped.length > 0 && h("ul", { class: "lines" }, stopped.map((each) => h(
        "li",
        {},
        code(`${each.topic}, partition ${each.partition}, offset ${each.offset}`),
        h("span", {}, `${plain(each.reason)}: ${each.detail}`),
        can && !each.delayed && button("Leave it out", () => move.behind(each), { kind: "quiet", key: `behind ${each.topic} ${each.partition}`, "aria-label": `Leave out offset ${each.offset} of ${each.topic}, partition ${each.partition}` }),
      ))),
      behind && h("p", { class: "hint" }, behind),
    ];
  }, 5);
  return page;
}

const moved = (seek) => {
  const to = seek.offset !== null ? `offset ${seek.offset}` : typeof seek.to === "number" ? `${time(seek.to)} UTC` : PLACES.find(([each]) => each === seek.to)?.[1];
  return [to, seek.topic && `of ${seek.topic}`, seek.partition !== null && `partition ${seek.partition}`].filter(Boolean).join(", ");
};

/** A form that makes the mapping go on elsewhere. */
function moving(app, id, done) {
  const fields = {
    to: choice("Go on with", PLACES),
    at: text("Time, UTC", { type: "datetime-local", step: 1, required: true }),
    topic: text("Topic", { mono: true, placeholder: "all" }),
    partition: text("Partition", { type: "number", min: 0, step: 1, placeholder: "all" }),
    offset: text("Offset", { type: "number", min: 0, step: 1, required: true }),
  };
  const trouble = h("div", {});
  const of = (name) => fields[name].value;
  const follow = () => {
    for (const [name, kind] of [["at", "time"], ["offset", "offset"]]) {
      fields[name].hide(of("to") !== kind);
      fields[name].control.disabled = of("to") !== kind; // nor is it required then
    }
  };
  fields.to.control.addEventListener("change", follow);
  follow();
  const number = (name) => (of(name) === "" ? undefined : Number(of(name)));
  const send = async (body, what) => {
    const sure = await confirm(`Move the mapping ${id}?`, `It goes on with ${what}. Records from there on become messages, also those that did before; records before it that it has not read never will.`, "Move it");
    if (!sure) return;
    try {
      await post(["apps", app, "mappings", id, "seek"], body);
      tellFields(fields, {});
      show(trouble);
      done("It is moved.");
    } catch (error) {
      const rest = tellFields(of("to") === "time" ? { ...fields, to: fields.at } : fields, error.details ?? {});
      show(trouble, notice("bad", "Not moved", Object.keys(error.details ?? {}).length ? rest.join("; ") || "See what is said beside the fields." : error.message));
      firstWrong(form)?.focus();
    }
  };
  const form = h(
    "form",
    {
      class: "stack",
      "aria-label": "Go on elsewhere",
      onsubmit: (event) => {
        event.preventDefault();
        const given = { topic: of("topic") || undefined, partition: number("partition") };
        const place = of("to") === "offset" ? { offset: number("offset") } : { to: of("to") === "time" ? Date.parse(`${of("at")}Z`) : of("to") };
        const body = { ...place, ...given };
        send(body, moved({ to: null, offset: null, topic: null, partition: null, ...JSON.parse(JSON.stringify(body)) }));
      },
    },
    trouble,
    h("div", { class: "row top" }, Object.values(fields).map((field) => field.element), h("button", { type: "submit" }, "Move it")),
  );
  return {
    element: h("details", { key: "move" }, h("summary", {}, "Go on elsewhere"), form),
    /** Past one record, at which a partition has stopped. */
    behind: ({ topic, partition, offset }) => send({ topic, partition, offset: offset + 1 }, moved({ to: null, topic, partition, offset: offset + 1 })),
  };
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
    keepLast: check("Keep the last message of each channel", { value: found?.keepLast ?? false, hint: "For compacted topics: clients that rewind get it, however old it is" }),
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
      group("To", fields.channel, fields.messageName, fields.keepLast),
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
      keepLast: of("keepLast"),
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
