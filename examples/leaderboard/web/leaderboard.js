// The page: shows each board that arrives on the channel. Where it comes from is in sdk.js (the official SDK) or direct.js (without it).
import { followDirectly } from "./direct.js";
import { followBySdk, loadSdk } from "./sdk.js";

const GLIDE = { duration: 450, easing: "cubic-bezier(0.3, 0.9, 0.3, 1)" };
const NEWS_EVERY_MS = 10_000;
const STATES = { connecting: "Connecting", live: "Live", failed: "Failed" };

const stillness = matchMedia("(prefers-reduced-motion: reduce)");
const part = (id) => document.getElementById(id);
const rows = new Map(); // player → <li>
let updates = 0;
let leader = null;
let newsAt = -Infinity;

function newRow(player) {
  const row = document.createElement("li");
  row.className = "player";
  row.dataset.player = player;
  for (const name of ["rank", "name", "score"]) {
    const cell = document.createElement("span");
    cell.className = name;
    row.append(cell);
  }
  row.querySelector(".name").textContent = player;
  return row;
}

function show({ top }) {
  const board = part("board");
  const before = new Map([...rows].map(([player, row]) => [player, row.getBoundingClientRect().top]));
  const best = Math.max(1, ...top.map(({ score }) => score));
  const shown = new Set(top.map(({ player }) => player));
  for (const [player, row] of rows) {
    if (shown.has(player)) continue;
    row.remove();
    rows.delete(player);
  }
  let next = board.firstElementChild;
  for (const { rank, player, score } of top) {
    const row = rows.get(player) ?? newRow(player);
    rows.set(player, row);
    row.classList.toggle("rising", rank < Number(row.dataset.rank ?? 0));
    row.dataset.rank = rank;
    row.style.setProperty("--share", score / best);
    row.querySelector(".rank").textContent = rank;
    row.querySelector(".score").textContent = score.toLocaleString();
    if (row === next) next = row.nextElementSibling;
    else board.insertBefore(row, next);
  }
  glide(before);
  part("waiting").hidden = top.length > 0;
  part("updates").textContent = (updates += 1).toLocaleString();
  tellLeader(top[0]);
}

// The document is in order at once, for screen readers and for copying; the eye sees each row go from where it was (also half-way) to its place.
function glide(before) {
  if (stillness.matches) return;
  for (const [player, row] of rows) {
    for (const animation of row.getAnimations()) animation.cancel();
    const way = (before.get(player) ?? Infinity) - row.getBoundingClientRect().top;
    if (way === Infinity) row.animate([{ opacity: 0, transform: "translateY(3rem)" }, {}], GLIDE);
    else if (way !== 0) row.animate([{ transform: `translateY(${way}px)` }, {}], GLIDE);
  }
}

function tellLeader(first) {
  if (first === undefined || first.player === leader || performance.now() - newsAt < NEWS_EVERY_MS) return;
  leader = first.player;
  newsAt = performance.now();
  part("news").textContent = `${leader} leads with ${first.score} points.`;
}

function say(state, detail = "") {
  const status = part("status");
  if (status.dataset.state === state && detail === "") return;
  status.dataset.state = state;
  status.textContent = detail ? `${STATES[state]}: ${detail}` : STATES[state];
}

// Fetched again whenever a token is needed: the server puts a fresh one there.
async function config() {
  const answer = await fetch("config.json", { cache: "no-store" });
  if (!answer.ok) throw new Error(`config.json: ${answer.status}`);
  return answer.json();
}

// `data` is JSON text or, from the SDK, what it says.
const receive = (data) => show(typeof data === "string" ? JSON.parse(data) : data);

const Ably = await loadSdk("ably.min.js");
part("client").textContent = Ably ? "the ably package" : "a plain WebSocket";
await (Ably ? followBySdk(Ably, config, receive, say) : followDirectly(config, receive, say));
