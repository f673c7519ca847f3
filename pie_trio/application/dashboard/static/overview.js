// What the server does now: numbers, batches, waits, pages, instances.

import { drawBatches, drawLines, windowOf } from "./charts.js";
import { age, count, duration, empty, make, panel, setText, short } from "./dom.js";
import { ownerColor, PageMap } from "./pagemap.js";
import { stats, watch } from "./stats.js";

const SECONDS = 60;
const RECENT = 6; // points that a rate is taken over: three seconds

export function showOverview(main) {
  document.title = "Overview · Pie";
  let chosen = null;
  const about = make("p");
  const broken = make("p.problem", { role: "status", hidden: true });
  const models = make("div.segments", { role: "radiogroup", "aria-label": "Model", hidden: true });
  const tiles = Object.fromEntries(
    [["running", "Instances running"], ["tokens", "Tokens a second"], ["batches", "Batches a second"], ["size", "Commands in a batch"], ["wait", "Wait in the queue (p95)"], ["pages", "KV pages used"]].map(
      ([key, label]) => [key, { label, value: make("span.value", {}, "–"), unit: make("span.unit") }],
    ),
  );
  const tileList = make("dl.tiles", {}, ...Object.values(tiles).map((one) => make("div.tile", {}, make("dt", {}, one.label), make("dd", {}, one.value, " ", one.unit))));
  const tokens = make("canvas", { role: "img" });
  const batches = make("canvas", { role: "img" });
  const waits = make("canvas", { role: "img" });
  const map = new PageMap();
  const rows = make("tbody");
  const tableBox = make("div.table-box", { tabIndex: 0, role: "group", "aria-label": "Instances, a table" });
  const table = make("table.cards", {}, make("thead", {}, make("tr", {}, ...["Instance", "State"].map(head), ...["Age", "Pages", "In queue", "Sampled"].map(headNumber))), rows);
  tableBox.append(table);
  const none = make("div", {}, empty("Nothing runs", "Launch a program from here, or in a terminal:", make("code", {}, "pie launch text_completion --prompt …"), make("a", { href: "#/programs" }, "Programs")));
  const loading = make("div", {}, empty("Waiting for the server", "As soon as it answers, this shows what it does."));
  const body = make(
    "div.stack",
    { hidden: true },
    tileList,
    make(
      "div.two",
      {},
      panel("Batches", { id: "batches", extra: key([["--line-1", "forward"], ["--line-2", "projection"], ["--line-3", "copy"]]) }, batches),
      panel("Tokens a second", { id: "tokens" }, tokens),
    ),
    panel("KV pages", { id: "pages", extra: models }, map.canvas, map.under, map.legend),
    make(
      "div.two.wide-first",
      {},
      panel("Instances", { id: "instances" }, tableBox, none),
      panel("Wait in the queue", { id: "waits", extra: key([["--line-1", "half wait less"], ["--line-2", "95 % wait less"]]) }, waits),
    ),
  );
  main.replaceChildren(make("div.head", {}, make("div", {}, make("h1", {}, "Overview"), about)), broken, loading, body);

  const rowOf = new Map();
  const draw = () => {
    const { state } = stats;
    loading.hidden = state !== null;
    body.hidden = state === null;
    if (!state) return;
    const names = [...state.models.keys()];
    if (!names.includes(chosen)) chosen = names[0];
    chooseModel(names);
    const model = state.models.get(chosen);
    const recent = model.points.slice(-RECENT);
    const seconds = recent.reduce((sum, point) => sum + point[1], 0) || 1;
    const total = (index) => recent.reduce((sum, point) => sum + point[index], 0);
    const engine = { ready: "", restarting: "The engine is being started again. ", lost: "The engine is lost. " }[model.state];
    const away = model.replicas.filter((one) => one.state !== "ready").length;
    broken.hidden = !away;
    setText(broken, engine ? `${engine}What runs waits or fails meanwhile; the server's log says why.` : away ? `${away} of ${model.replicas.length} engines ${away === 1 ? "is" : "are"} away. The others go on; the server's log says why.` : "");
    const replicas = model.replicas.length < 2 ? "" : ` · replicas with ${model.replicas.map((one) => `${count(one.instances)} (${Math.round((100 * (one.pages - one.pages_free)) / one.pages)} % of the pages)`).join(", ")}`;
    setText(about, `${model.name}, ${model.architecture}, policy ${model.policy}${replicas} · ${state.owner} · Pie ${state.version}`);
    put("running", count(state.running), `of ${count(state.max_instances)}`);
    put("tokens", short(total(4) / seconds), "");
    put("batches", short(total(2) / seconds), "");
    put("size", total(2) ? (total(3) / total(2)).toFixed(1) : "–", total(2) ? "on average" : "idle");
    put("wait", total(2) ? duration(Math.max(...recent.map((point) => point[6]))) : "–", "");
    const used = model.pages - model.pages_free;
    put("pages", `${((100 * used) / model.pages).toFixed(used && used * 100 < model.pages ? 1 : 0)} %`, `${count(used)} of ${count(model.pages)}`);
    const times = model.points.map((point) => point[0]);
    const now = state.at;
    const shownSeconds = windowOf(model.batches, now);
    drawBatches(batches, { batches: model.batches, now, seconds: shownSeconds });
    label(batches, `Batches of the last ${shownSeconds} seconds: ${put.text.batches} a second, ${put.text.size} commands each`);
    drawLines(tokens, { times, now, seconds: SECONDS, format: short, series: [{ color: "--line-1", isFilled: true, values: model.points.map((point) => point[4] / point[1]) }] });
    label(tokens, `Tokens a second in the last minute: ${put.text.tokens} now`);
    drawLines(waits, { times, now, seconds: SECONDS, format: duration, series: [{ color: "--line-2", values: model.points.map((point) => point[6]) }, { color: "--line-1", values: model.points.map((point) => point[5]) }] });
    label(waits, `Waits in the queue in the last minute: 95 % are below ${put.text.wait} now`);
    map.draw(model, state.instances.values());
    fillTable(state);
  };

  function put(key, value, unit) {
    setText(tiles[key].value, value);
    setText(tiles[key].unit, unit);
    put.text[key] = value;
  }
  put.text = {};

  function chooseModel(names) {
    models.hidden = names.length < 2;
    if (models.hidden || models.childElementCount === names.length) return;
    models.replaceChildren(
      ...names.map((name) => make("label", {}, make("input.visually-hidden", { type: "radio", name: "model", value: name, checked: name === chosen, onchange: () => { chosen = name; draw(); } }), name)),
    );
  }

  function fillTable(state) {
    const shown = [...state.instances.values()].reverse();
    shown.sort((a, b) => (b.state === "running") - (a.state === "running") || b.launched_at - a.launched_at);
    none.hidden = shown.length > 0;
    tableBox.hidden = shown.length === 0;
    const alive = new Set(shown.map((one) => one.id));
    for (const [id, row] of rowOf) {
      if (!alive.has(id)) {
        row.element.remove();
        rowOf.delete(id);
      }
    }
    shown.forEach((one, at) => {
      if (!rowOf.has(one.id)) rowOf.set(one.id, makeRow(one));
      const row = rowOf.get(one.id);
      row.update(one, state.at);
      if (rows.children[at] !== row.element) rows.insertBefore(row.element, rows.children[at] ?? null);
    });
  }

  const unwatch = watch(draw);
  const observer = new ResizeObserver(draw);
  observer.observe(main);
  addEventListener("pie-theme", draw);
  draw();
  return () => {
    unwatch();
    observer.disconnect();
    removeEventListener("pie-theme", draw);
  };
}

function makeRow(one) {
  const chip = make("span.chip", { "aria-hidden": "true" });
  const state = make("td");
  const cells = ["Age", "Pages", "In queue", "Sampled"].map((name) => make("td.number", { "data-label": name }));
  const link = make("a.mono", { href: `#/instances/${encodeURIComponent(one.id)}` }, one.id);
  const element = make("tr", {}, make("td", {}, chip, link), state, ...cells);
  let shown = "";
  return {
    element,
    update(fresh, now) {
      chip.style.background = fresh.code ? `var(${ownerColor(fresh.code)})` : "var(--page-free)";
      const name = fresh.suspended ? "suspended" : fresh.state;
      if (shown !== name) state.replaceChildren(badge(name));
      shown = name;
      const texts = [age(fresh.seconds ?? now - fresh.launched_at), count(fresh.pages), count(fresh.queue), count(fresh.tokens_sampled)];
      texts.forEach((text, at) => setText(cells[at], text));
    },
  };
}

export const badge = (state) => make(`span.badge.${state}`, {}, state);
const head = (text) => make("th", { scope: "col" }, text);
const headNumber = (text) => make("th.number", { scope: "col" }, text);
const label = (canvas, text) => canvas.setAttribute("aria-label", text);

function key(entries) {
  return make("span.keys", {}, ...entries.map(([color, name]) => {
    const chip = make("span.chip.line", { "aria-hidden": "true" });
    chip.style.background = `var(${color})`;
    return make("span.key", {}, chip, name);
  }));
}
