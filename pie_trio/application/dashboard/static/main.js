// The frame of the dashboard: which view is shown, whether the server answers, light or dark.

import { ask, onUnauthorized } from "./api.js";
import { showChat } from "./chat.js";
import { make } from "./dom.js";
import { showInstance } from "./instance.js";
import { showLogin } from "./login.js";
import { showOverview } from "./overview.js";
import { showPrograms } from "./programs.js";
import { pause, resume, start, stats, watch } from "./stats.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const notice = document.getElementById("notice");
const logout = document.getElementById("logout");

let leave = () => {};
let isLocked = false;

const LINKS = {
  live: "Live",
  connecting: "Connecting",
  lost: "No connection",
  stopping: "Server stops",
  paused: "Paused",
  locked: "Logged out",
  forbidden: "Not allowed",
};

function route() {
  if (isLocked) return;
  const [, view = "", name] = location.hash.split("/");
  leave();
  const argument = name === undefined ? undefined : decode(name);
  const shown = { "": "overview", instances: "overview", programs: "programs", chat: "chat" }[view] ?? "none";
  for (const one of document.querySelectorAll("#nav a")) {
    if (one.dataset.view === shown) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  if (view === "instances" && argument) leave = showInstance(main, argument);
  else if (view === "programs") leave = showPrograms(main, argument);
  else if (view === "chat") leave = showChat(main);
  else leave = showOverview(main);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function showLink() {
  const text = LINKS[stats.link];
  if (link.textContent !== text) link.textContent = text;
  link.dataset.link = stats.link;
  if (stats.link === "lost") say("The server does not answer. This page tries again by itself; what it shows is old.");
  else if (stats.link === "stopping") say("The server stops. This page connects again when it is back.");
  else if (stats.link === "forbidden") say(stats.refusal.message);
  else if (stats.link === "live" && stats.restarted) {
    stats.restarted = false;
    say("The server was started anew: what ran before is gone.");
    setTimeout(() => say(""), 8000);
    if (location.hash.startsWith("#/programs")) route();
  } else if (stats.link === "live" && !notice.textContent.startsWith("The server was started")) say("");
}

function say(text) {
  notice.hidden = !text;
  if (notice.textContent !== text) notice.textContent = text;
}

function lock() {
  if (isLocked) return;
  isLocked = true;
  pause("locked");
  say("");
  leave();
  logout.hidden = true;
  leave = showLogin(main, unlock);
}

function unlock() {
  isLocked = false;
  route();
  resume();
  showUser();
}

async function showUser() {
  try {
    const { keys, user } = await ask("GET", "/v1/login");
    logout.hidden = !keys;
    logout.title = keys ? `You are ${user}` : "";
  } catch {
    logout.hidden = true;
  }
}

logout.addEventListener("click", async () => {
  await ask("POST", "/v1/logout").catch(() => {});
  lock();
});

const ICONS = {
  auto: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
};

function showTheme() {
  const { name } = window.pieTheme;
  const button = document.getElementById("theme");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const isHalf = name === "auto";
  const attributes = { d: ICONS[name], fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round" };
  for (const [key, value] of Object.entries(attributes)) path.setAttribute(key, value);
  svg.append(path);
  if (isHalf) {
    const half = path.cloneNode();
    half.setAttribute("d", "M12 3a9 9 0 0 1 0 18z");
    half.setAttribute("fill", "currentColor");
    svg.append(half);
  }
  const label = `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[name]}`;
  button.replaceChildren(svg, make("span.visually-hidden", {}, label));
  button.title = label;
}

document.getElementById("theme").addEventListener("click", () => window.pieTheme.next());
addEventListener("pie-theme", showTheme);
addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
watch(showLink);
watch(() => stats.link === "locked" && lock());
onUnauthorized(lock);
showTheme();
route();
start();
showUser();
