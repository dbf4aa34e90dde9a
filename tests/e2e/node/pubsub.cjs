// Publishes `count` messages on `channel` and subscribes to it, over two connections. Prints what happens, a JSON object a line.
'use strict';
const Ably = require('ably');
const s = JSON.parse(process.env.SETTINGS);
const say = (what, more) => process.stdout.write(JSON.stringify({ what, ...more }) + '\n');
const client = (name) => {
  const c = new Ably.Realtime({
    endpoint: s.host, port: s.port, tlsPort: s.port, tls: true, logLevel: 0,
    useBinaryProtocol: s.binary === true, ...(s.useToken ? { token: s.token } : { key: s.key }), ...(s.options || {}),
  });
  c.connection.on((change) => say('state', { name, state: change.current, code: change.reason && change.reason.code }));
  c.connection.on('connected', (change) => say('connection', { name, id: c.connection.id, code: change.reason ? change.reason.code : null }));
  return c;
};
process.stdin.on('data', () => {}).on('end', () => process.exit(0));
(async () => {
  const sub = client('subscriber');
  const pub = s.oneClient ? sub : client('publisher');
  const channel = sub.channels.get(s.channel);
  channel.on('attached', (change) => say('attached', { resumed: change.resumed, code: change.reason ? change.reason.code : null }));
  try {
    await channel.subscribe((m) => say('message', { data: m.data && m.data.n !== undefined ? m.data.n : m.data, id: m.id, serial: m.serial, clientId: m.clientId, connectionId: m.connectionId }));
    await pub.connection.whenState('connected');
  } catch (e) {
    say('failed', { code: e.code, statusCode: e.statusCode });
    return;
  }
  say('ready', { connectionId: pub.connection.id });
  const target = pub.channels.get(s.channel);
  const gap = s.rate ? 1000 / s.rate : 0;
  const started = Date.now();
  const pending = [];
  for (let n = 0; n < s.count; n++) {
    pending.push(target.publish(s.name || 'n', { n }).then(
      () => say('acked', { n }),
      (e) => say('nacked', { n, code: e.code, statusCode: e.statusCode }),
    ));
    if (gap) {
      const wait = started + (n + 1) * gap - Date.now();
      if (wait > 0) await new Promise((r) => setTimeout(r, wait));
    }
  }
  await Promise.all(pending);
  say('published', {});
})();
