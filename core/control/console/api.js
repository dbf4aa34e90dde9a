// The Control API, asked with the access token that was typed in. It is in this variable and nowhere else: a reload forgets it.

let token = null;

export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.message ?? `The core answered with HTTP ${status}.`);
    this.status = status;
    this.details = problem?.details ?? {};
  }
}

export const signedIn = () => token !== null;
export const useToken = (given) => { token = given; };
export const forgetToken = () => { token = null; };

let whenRefused = () => {};
/** What to do once the token does not count any more. */
export const onSignedOut = (act) => { whenRefused = act; };

export async function ask(method, path, { query, body, signal, secrets } = {}) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== "");
  const url = `/v1/${path.map(encodeURIComponent).join("/")}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
  // Secrets are asked for never to be sent, even if the token could have them: but for that of a key or an access token that is made here.
  const headers = { accept: "application/json", authorization: `Bearer ${token}` };
  if (!secrets) headers["x-tidegate-secrets"] = "none";
  if (body !== undefined) headers["content-type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(url, { method, headers, body: sent, signal, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The core does not answer. It may be starting again; this page goes on trying." });
  }
  const text = await answer.text();
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    throw new Refused(answer.status, { message: "The core did not answer as a Control API does." });
  }
  if (!answer.ok) {
    if (answer.status === 401) whenRefused();
    throw new Refused(answer.status, content);
  }
  return content;
}

export const get = (path, more) => ask("GET", path, more);
export const post = (path, body, more) => ask("POST", path, { ...more, body });
export const patch = (path, body) => ask("PATCH", path, { body });
export const remove = (path) => ask("DELETE", path);
