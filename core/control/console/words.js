// Numbers, times and states in words.

export const count = (number) => (number === null || number === undefined ? "?" : number.toLocaleString("en"));

export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

export const plain = (word) => String(word ?? "").replaceAll("_", " ");

/** UTC to the second, as the command line and the logs have it. */
export const time = (ms) => (ms ? new Date(ms).toISOString().slice(0, 19).replace("T", " ") : "–");

export function ago(ms, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - ms) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** 0-3, 7 */
export function ranges(numbers) {
  const runs = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([low, high]) => (low === high ? `${low}` : `${low}–${high}`)).join(", ") || "none";
}

/** JSON with indentation if it is JSON, else the text. */
export function pretty(value) {
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  try {
    const found = JSON.parse(value);
    return typeof found === "object" && found !== null ? JSON.stringify(found, null, 2) : value;
  } catch {
    return value;
  }
}
