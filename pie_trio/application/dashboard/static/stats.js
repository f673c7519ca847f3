// What goes on in the server, kept up to date by one stream for all views.

import { events } from "./api.js";

const KEEP_POINTS = 120;
const KEEP_BATCHES = 240;
const SILENT_MS = 20_000;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

/** The latest state, or null; `instances` and `models` are by id and name. */
export const stats = {
  state: null,
  link: "connecting", // live, connecting, lost, stopping, paused
  listeners: new Set(),
  wanted: true,
};

let controller = null;
let failures = 0;
let timer = 0;
let everLive = false;
let serverId = null;

/** Be told each change; returns what ends that. */
export function watch(listener) {
  stats.listeners.add(listener);
  return () => stats.listeners.delete(listener);
}

function tell() {
  for (const listener of [...stats.listeners]) listener(stats);
}

function setLink(link) {
  stats.link = link;
  tell();
}

/** Follow the server for as long as the page is shown. */
export function start() {
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : resume()));
  resume();
}

export function resume() {
  stats.wanted = true;
  clearTimeout(timer);
  if (!controller) follow();
}

export function pause(link = "paused") {
  stats.wanted = false;
  clearTimeout(timer);
  controller?.abort();
  setLink(link);
}

async function follow() {
  const own = (controller = new AbortController());
  let watchdog = 0;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => own.abort(), SILENT_MS); // a connection that has died silently
  };
  let isStopping = false;
  if (stats.link !== "lost" && stats.link !== "stopping") setLink("connecting");
  try {
    alive();
    for await (const event of events("GET", "/v1/stats/stream", { signal: own.signal })) {
      alive();
      if (event.kind === "snapshot") takeSnapshot(event.data);
      else if (event.kind === "changes") takeChanges(event.data);
      else if (event.kind === "bye") isStopping = true;
      if (event.kind !== "bye") {
        failures = 0;
        everLive = true;
        setLink(event.data.draining ? "stopping" : "live");
      }
    }
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      controller = null;
      clearTimeout(watchdog);
      stats.wanted = false;
      stats.refusal = error;
      setLink(error.status === 401 ? "locked" : "forbidden");
      return;
    }
  }
  clearTimeout(watchdog);
  controller = null;
  if (!stats.wanted) return;
  setLink(isStopping ? "stopping" : everLive || failures > 0 ? "lost" : "connecting");
  const wait = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
  failures += 1;
  timer = setTimeout(follow, wait);
}

function takeSnapshot(data) {
  stats.restarted = serverId !== null && serverId !== data.server;
  serverId = data.server;
  const models = data.models.map((model) => ({ ...model, cells: decode(model.map) }));
  stats.state = {
    ...data,
    instances: new Map(data.instances.map((one) => [one.id, one])),
    models: new Map(models.map((model) => [model.name, model])),
  };
}

function takeChanges(data) {
  const state = stats.state;
  const { instances, models, gone, ...general } = data;
  Object.assign(state, general);
  for (const id of gone) state.instances.delete(id);
  for (const one of instances) state.instances.set(one.id, one);
  for (const fresh of models) {
    const model = state.models.get(fresh.name);
    const { points, batches, map, ...numbers } = fresh;
    Object.assign(model, numbers);
    model.points = [...model.points, ...points].slice(-KEEP_POINTS);
    model.batches = [...model.batches, ...batches].slice(-KEEP_BATCHES);
    for (let at = 0; at < map.changes.length; at += 3) {
      const [begin, length, code] = map.changes.slice(at, at + 3);
      model.cells.fill(code, begin, begin + length);
    }
  }
}

function decode(map) {
  const cells = new Int32Array(map.cells);
  let begin = 0;
  for (let at = 0; at < map.runs.length; at += 2) {
    const length = map.runs[at];
    cells.fill(map.runs[at + 1], begin, begin + length);
    begin += length;
  }
  return cells;
}
