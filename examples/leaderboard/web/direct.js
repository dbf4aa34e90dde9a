// The protocol without the SDK: connect with a token, attach, read messages, and come back after a loss.
const HEARTBEAT = 0, CONNECTED = 4, DISCONNECTED = 6, ERROR = 9, ATTACH = 10, DETACHED = 13, MESSAGE = 15, AUTH = 17;
const SUBSCRIBE = 1 << 18; // the mode asked for
const GRACE_MS = 10_000; // on top of the silence that the server promises not to exceed
const LONGEST_WAIT_MS = 15_000;

export async function followDirectly(config, receive, say) {
  let wait = 500;
  for (;;) {
    try {
      say("connecting");
      await connection(await config(), config, receive, () => {
        wait = 500;
        say("live");
      });
    } catch (error) {
      if (!(error instanceof TypeError)) say("failed", error.message); // a TypeError is fetch without a network: just wait
    }
    await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random())));
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

// One connection, for as long as it lasts. Throws for what a new one may not mend either.
function connection({ url, token, channel }, config, receive, live) {
  return new Promise((resolve, reject) => {
    const query = new URLSearchParams({ access_token: token, format: "json", v: "6", heartbeats: "true" });
    const socket = new WebSocket(`${url}/?${query}`);
    const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
    const attach = () => send({ action: ATTACH, channel, flags: SUBSCRIBE });
    let silence = 30_000;
    let watch = 0;
    const heard = () => {
      clearTimeout(watch);
      watch = setTimeout(() => socket.close(), silence);
    };
    const fail = (error) => {
      reject(new Error(error?.message ?? "refused"));
      socket.close();
    };
    const on = {
      [HEARTBEAT]: () => {},
      [CONNECTED]: ({ connectionDetails }) => {
        silence = (connectionDetails.maxIdleInterval || 20_000) + GRACE_MS;
        live();
        attach();
      },
      [MESSAGE]: ({ messages }) => messages.forEach((message) => receive(message.data)),
      [DETACHED]: attach,
      [AUTH]: async () => send({ action: AUTH, auth: { accessToken: (await config()).token } }),
      [DISCONNECTED]: () => socket.close(),
      [ERROR]: ({ error }) => fail(error),
    };
    socket.onmessage = ({ data }) => {
      heard();
      const message = JSON.parse(data);
      on[message.action]?.(message);
    };
    socket.onclose = () => {
      clearTimeout(watch);
      resolve();
    };
    heard();
  });
}
