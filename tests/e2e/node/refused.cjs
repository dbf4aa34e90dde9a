// Connects with the given credential and attaches; prints the first refusal, or `attached`.
'use strict';
const Ably = require('ably');
const s = JSON.parse(process.env.SETTINGS);
const say = (what, more) => { process.stdout.write(JSON.stringify({ what, ...more }) + '\n'); };
const c = new Ably.Realtime({
  endpoint: s.host, port: s.port, tlsPort: s.port, tls: true, logLevel: 0, useBinaryProtocol: s.binary === true, ...s.options,
});
c.connection.on((x) => { if (x.reason) say('connection', { state: x.current, code: x.reason.code, statusCode: x.reason.statusCode, cause: x.reason.cause && x.reason.cause.code }); });
c.channels.get(s.channel).attach().then(
  () => say('attached', {}),
  (e) => say('channel', { code: e.code, statusCode: e.statusCode }),
);
