// Clients of the official SDK that publish as many messages as they are told, each on channels of its own, numbered in order.
// Says how far it is once a second, and at the end which messages were refused, for each channel.
'use strict';
const Ably = require('ably');
const s = JSON.parse(process.env.SETTINGS);
const say = (what, more) => process.stdout.write(JSON.stringify({ what, ...more }) + '\n');
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
let sent = 0, acked = 0, connections = 0;
const failed = {};

async function client(name, channels, count, rate) {
  const sdk = new Ably.Realtime({
    endpoint: s.host, port: s.port, tlsPort: s.port, tls: true, logLevel: 0, key: s.key, clientId: name, disconnectedRetryTimeout: 2000,
    disableConnectivityCheck: true,
  });
  sdk.connection.on('connected', () => connections++);
  await new Promise((r) => sdk.connection.once('connected', r));
  const next = new Map(channels.map((channel) => [channel, 0]));
  const open = new Set();
  const began = Date.now();
  for (let n = 0; n < count; n++) {
    const channel = channels[n % channels.length];
    const number = next.get(channel);
    next.set(channel, number + 1);
    const done = sdk.channels.get(channel, { attachOnSubscribe: false }).publish('m', String(number)).then(
      () => { acked++; },
      (e) => { (failed[channel] = failed[channel] || []).push([number, e.code]); },
    ).finally(() => open.delete(done));
    open.add(done);
    sent++;
    const ahead = (n / rate) * 1000 - (Date.now() - began);
    if (ahead > 5) await sleep(ahead);
    while (open.size >= s.window) await Promise.race(open);
  }
  await Promise.all(open);
  sdk.close();
  return next;
}

(async () => {
  const each = Math.floor(s.messages / s.clients);
  const counts = {};
  const ticker = setInterval(() => say('progress', { sent, acked, connections }), 1000);
  await Promise.all([...Array(s.clients).keys()].map(async (i) => {
    const channels = [...Array(s.channels).keys()].map((c) => `${s.prefix}:${i}:${c}`);
    for (const [channel, count] of await client(`flood-${i}`, channels, each, s.rate / s.clients)) counts[channel] = count;
  }));
  clearInterval(ticker);
  say('progress', { sent, acked, connections });
  say('done', { counts, failed, acked });
})();
