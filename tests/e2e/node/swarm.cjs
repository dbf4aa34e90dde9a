// Many clients of the official SDK in one process. Each subscribes to two channels, publishes to them, and enters and leaves their presence.
// Every publisher numbers what it sends to a channel, so that a subscriber sees by itself what is missing, doubled or out of order.
// Commands are lines on stdin: `go`, `quiet` (nobody enters or leaves any more), `presence` (what each client gets), `stop`, `report`.
'use strict';
const Ably = require('ably');
const s = JSON.parse(process.env.SETTINGS);
const say = (what, more) => process.stdout.write(JSON.stringify({ what, ...more }) + '\n');
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
const later = (mean) => -Math.log(1 - Math.random()) * mean;
let quiet = false, stopped = false, publishing = 0, toggling = 0;

class Seen {
  // What one subscriber has got on one channel.
  constructor(client, channel) {
    Object.assign(this, { client, channel, next: new Map(), missed: new Map(), deliveries: 0, doubled: 0, disordered: 0, lapses: 0, timeouts: 0, parted: false, began: false });
  }
  got(publisher, n) {
    this.deliveries++;
    const next = this.next.has(publisher) ? this.next.get(publisher) : 0;
    if (next === null || n >= next) {
      for (let lost = next === null ? n : next; lost < n; lost++) {
        if (!this.missed.has(publisher)) this.missed.set(publisher, new Set());
        this.missed.get(publisher).add(lost);
        say('gap', { client: this.client, channel: this.channel, publisher, n: lost, at: Date.now() });
      }
      this.next.set(publisher, n + 1);
    } else if (this.missed.has(publisher) && this.missed.get(publisher).delete(n)) {
      this.disordered++;
      say('disordered', { client: this.client, channel: this.channel, publisher, n, next, at: Date.now() });
    } else {
      this.doubled++;
      say('doubled', { client: this.client, channel: this.channel, publisher, n, next, at: Date.now() });
    }
  }
  became(state, resumed) {
    // Not attached any more, or attached without continuity: something may be missing, so what comes next is taken as it comes.
    if (!this.began) { this.began = true; return; }
    if (resumed) return;
    for (const publisher of s.everybody) this.next.set(publisher, null);
    if (state !== 'attached' && state !== 'update') { this.timeouts++; this.parted = true; }
    else if (this.parted) this.parted = false;
    else this.lapses++;
  }
}

class Client {
  constructor(name, channels, number) {
    this.name = name;
    this.sdk = new Ably.Realtime({
      endpoint: s.host, port: s.port, tlsPort: s.port, tls: true, logLevel: 0, key: s.key, clientId: name,
      useBinaryProtocol: number % 2 === 1, disconnectedRetryTimeout: number % 4 < 2 ? 15000 : 2000, disableConnectivityCheck: true,
    });
    this.places = channels.map((channel) => ({
      channel, sdk: this.sdk.channels.get(channel), seen: new Seen(name, channel), sent: 0, acked: 0, failed: [], out: new Map(), present: false,
    }));
    this.waits = [];
    this.resumes = -1;
    this.sdk.connection.on('connected', (change) => {
      this.resumes++;
      if (this.id && this.id !== this.sdk.connection.id)
        say('replaced', { client: name, code: change.reason && change.reason.code, at: Date.now() });
      this.id = this.sdk.connection.id;
    });
    this.states = [];
    this.sdk.connection.on((change) => {
      const code = change.reason ? change.reason.code : null;
      this.states = [...this.states.slice(-20), [Date.now(), change.current, code]];
      if (change.current === 'suspended' || change.current === 'failed')
        say('connection', { client: name, state: change.current, code, states: this.states, at: Date.now() });
    });
  }
  async start() {
    for (const place of this.places) {
      place.sdk.on(['attached', 'update', 'suspended', 'failed', 'detached'], (change) => {
        const before = place.seen.lapses + place.seen.timeouts;
        place.seen.became(change.current, change.resumed);
        if (place.seen.lapses + place.seen.timeouts > before)
          say('lapse', { client: this.name, channel: place.channel, state: change.current, code: change.reason && change.reason.code, at: Date.now() });
      });
      await place.sdk.subscribe((m) => {
        const [publisher, n] = m.data.split(':');
        place.seen.got(publisher, Number(n));
      });
      if (s.presence) await this.enter(place);
    }
  }
  async enter(place) {
    await place.sdk.presence.enter('here');
    place.present = true;
  }
  async publishes() {
    await sleep(later(1000 / s.rate));
    while (!stopped) {
      const place = this.places[Math.floor(Math.random() * this.places.length)];
      const n = place.sent++, at = Date.now();
      place.out.set(n, at);
      publishing++;
      place.sdk.publish('m', `${this.name}:${n}`).then(
        () => { place.acked++; this.waits.push(Date.now() - at); },
        (e) => { place.failed.push(n); say('refused', { client: this.name, channel: place.channel, n, code: e.code, at: Date.now() }); },
      ).finally(() => { publishing--; place.out.delete(n); });
      await sleep(later(1000 / s.rate));
    }
  }
  async comesAndGoes() {
    for (;;) {
      await sleep(later(s.toggleMs));
      if (quiet) return;
      const place = this.places[Math.floor(Math.random() * this.places.length)];
      toggling++;
      try {
        if (place.present) {
          await place.sdk.presence.leave();
          place.present = false;
        } else await this.enter(place);
      } catch (e) {
        // Nobody can say whether it happened: `quiet` makes sure
        place.unsure = true;
        say('unsure', { client: this.name, channel: place.channel, code: e.code, at: Date.now() });
      } finally {
        toggling--;
      }
    }
  }
  async makesSure() {
    for (const place of this.places)
      while (place.unsure) {
        try {
          await this.enter(place);
          place.unsure = false;
        } catch (e) {
          await sleep(1000);
        }
      }
  }
  report() {
    for (const p of this.places)
      say('place', {
        client: this.name, channel: p.channel, sent: p.sent, acked: p.acked, failed: p.failed, unanswered: [...p.out.keys()], lapses: p.seen.lapses, timeouts: p.seen.timeouts,
        deliveries: p.seen.deliveries, doubled: p.seen.doubled, disordered: p.seen.disordered,
        next: Object.fromEntries(p.seen.next), missed: Object.fromEntries([...p.seen.missed].map(([who, lost]) => [who, [...lost]])),
      });
    say('client', { client: this.name, resumes: this.resumes, state: this.sdk.connection.state, waits: this.waits });
  }
}

const clients = s.clients.map(([name, channels], number) => new Client(name, channels, number));
const commands = {
  go() {
    for (const client of clients) {
      client.publishes();
      if (s.presence) client.comesAndGoes();
    }
  },
  async quiet() {
    quiet = true;
    while (toggling) await sleep(50);
    await Promise.all(clients.map((client) => client.makesSure()));
    say('quiet', { present: clients.flatMap((c) => c.places.filter((p) => p.present).map((p) => [p.channel, c.name])) });
  },
  async presence() {
    const round = Date.now();
    await Promise.all(clients.flatMap((c) => c.places.map(async (p) => {
      try {
        const members = await p.sdk.presence.get();
        say('members', { client: c.name, channel: p.channel, members: members.map((m) => m.clientId).sort() });
      } catch (e) {
        say('members', { client: c.name, channel: p.channel, code: e.code });
      }
    })));
    say('asked', { ms: Date.now() - round });
  },
  async stop() {
    stopped = true;
    while (publishing) await sleep(50);
    say('stopped', {});
  },
  report() {
    for (const client of clients) client.report();
    say('reported', {});
  },
};
let rest = '';
process.stdin.on('data', (text) => {
  const lines = (rest + text).split('\n');
  rest = lines.pop();
  for (const line of lines) commands[line]();
}).on('end', () => process.exit(0));
process.on('unhandledRejection', (e) => { say('crashed', { error: String(e && e.stack) }); process.exit(1); });
(async () => {
  for (let n = 0; n < clients.length; n += 10) await Promise.all(clients.slice(n, n + 10).map((client) => client.start()));
  say('ready', {});
})();
