// The official SDK, unmodified: what an application of yours would do.

// The browser build of the ably package, or null where the server has none.
export async function loadSdk(address) {
  const there = await fetch(address, { method: "HEAD" }).catch(() => null);
  if (!there?.ok) return null;
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(window.Ably ?? null);
    script.onerror = () => resolve(null);
    document.head.append(script);
  });
}

export async function followBySdk(Ably, config, receive, say) {
  const { url, channel } = await config();
  const at = new URL(url);
  const tls = at.protocol === "wss:";
  const port = Number(at.port) || (tls ? 443 : 80);
  const ably = new Ably.Realtime({
    endpoint: at.hostname,
    tls,
    [tls ? "tlsPort" : "port"]: port,
    disableConnectivityCheck: true, // the page may be on a network of its own
    authCallback: (_, done) => config().then(({ token }) => done(null, token), (error) => done(error.message, null)),
  });
  ably.connection.on(({ current, reason }) => {
    if (current === "connected") say("live");
    else if (current === "failed") say("failed", reason?.message);
    else say("connecting");
  });
  await ably.channels.get(channel).subscribe((message) => receive(message.data));
}
