// The timeline of an instance: its calls, how long each waited, and the batches they were in.

import { prepare } from "./charts.js";
import { count, cssColor, duration, make, setText } from "./dom.js";

const LEFT = 64;
const LANE = 16;
const MAX_LANES = 8;
const AXIS = 20;
const LATEST = 12;
export const SPANS = [["5", "5 s"], ["30", "30 s"], ["all", "All"]];

export class Timeline {
  constructor() {
    this.canvas = make("canvas", { role: "img", "aria-label": "Timeline" });
    this.under = make("p.under");
    this.rows = make("tbody");
    const heads = ["Call", "Waited", "Ran", "Batch", "Size", "Outcome"];
    this.table = make("table", {}, make("caption.visually-hidden", {}, "Latest calls"), make("thead", {}, make("tr", {}, ...heads.map((text, at) => make(at && at < 5 ? "th.number" : "th", { scope: "col" }, text)))), this.rows);
    this.span = "all";
    this.data = null;
  }

  draw(data = this.data) {
    this.data = data;
    if (!data) return;
    const end = Math.max(data.now, 0.001);
    const begin = this.span === "all" ? Math.min(0, end) : Math.max(0, end - Number(this.span));
    const commands = data.commands.filter((one) => one.finished >= begin);
    const spans = data.spans.filter((one) => (one.ended ?? end) >= begin);
    const callLanes = lanes(commands, (one) => one.submitted, (one) => one.finished);
    const spanLanes = lanes(spans, (one) => one.began, (one) => one.ended ?? end);
    const batchTop = spanLanes.length * LANE + callLanes.length * LANE + 18;
    const height = batchTop + 54 + AXIS;
    const view = prepare(this.canvas, Math.max(120, height));
    const { context, width } = view;
    const perSecond = (width - LEFT) / (end - begin || 1);
    const x = (at) => LEFT + Math.max(0, at - begin) * perSecond;
    const bar = (from, to, y, tall) => context.fillRect(x(from), y, Math.max(1.5, x(to) - x(from)), tall);
    context.textBaseline = "middle";
    context.textAlign = "left";
    const name = (text, y) => {
      context.fillStyle = cssColor("--muted");
      context.fillText(text, 0, y);
    };
    let y = 4;
    if (spanLanes.length) name("Spans", y + LANE / 2);
    for (const lane of spanLanes) {
      for (const one of lane) {
        context.fillStyle = cssColor("--accent-soft");
        bar(one.began, one.ended ?? end, y, LANE - 3);
        const room = x(one.ended ?? end) - x(one.began) - 8;
        if (room > 24) {
          context.fillStyle = cssColor("--text");
          context.fillText(fit(context, one.name, room), x(one.began) + 4, y + (LANE - 3) / 2);
        }
      }
      y += LANE;
    }
    name("Calls", y + LANE / 2);
    for (const lane of callLanes) {
      for (const one of lane) {
        const started = one.started ?? one.finished;
        context.fillStyle = cssColor("--border");
        bar(one.submitted, started, y + 3, LANE - 7);
        context.fillStyle = cssColor(one.outcome === "ok" ? "--line-1" : "--bad");
        if (one.started !== null) bar(started, one.finished, y, LANE - 2);
      }
      y += LANE;
    }
    const batches = data.batches.filter((one) => one.ended >= begin);
    const largest = Math.max(1, ...batches.map((one) => one.size));
    y = batchTop;
    name("Batches", y + 44 - LANE / 2);
    context.fillStyle = cssColor("--line-3");
    for (const one of batches) {
      const tall = Math.max(3, (one.size / largest) * 44);
      bar(one.began, one.ended, y + 44 - tall, tall);
    }
    context.fillStyle = cssColor("--grid");
    context.fillRect(LEFT, y + 44, width - LEFT, 1);
    context.fillStyle = cssColor("--muted");
    context.textBaseline = "top";
    for (const part of width > 480 ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1]) {
      context.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
      const at = begin + part * (end - begin);
      context.fillText(end - begin < 1 ? `${(at * 1000).toFixed(0)} ms` : `${at.toFixed(1)} s`, LEFT + part * (width - LEFT), y + 50);
    }
    this.describe(commands, batches, largest);
  }

  describe(commands, batches, largest) {
    const waited = commands.reduce((sum, one) => sum + ((one.started ?? one.finished) - one.submitted), 0);
    const ran = commands.reduce((sum, one) => sum + (one.started === null ? 0 : one.finished - one.started), 0);
    const text = commands.length
      ? `${count(commands.length)} calls in ${count(batches.length)} batches of up to ${largest}: they waited ${duration(waited)} and ran ${duration(ran)}${this.data.commands_left_out ? `; ${count(this.data.commands_left_out)} older ones are left out` : ""}`
      : "No calls of the model in this time";
    setText(this.under, text);
    this.canvas.setAttribute("aria-label", `Timeline. ${text}`);
    const reasons = new Map(batches.map((one) => [`${one.model} ${one.number}`, one.reason]));
    const latest = commands.slice(-LATEST).reverse();
    this.rows.replaceChildren(
      ...latest.map((one) => {
        const started = one.started ?? one.finished;
        const cell = (value) => make("td.number", {}, value);
        return make(
          "tr",
          {},
          make("td", {}, `${one.kind}${one.tokens ? `, ${one.tokens} ${one.tokens === 1 ? "token" : "tokens"}` : ""}`),
          cell(duration(started - one.submitted)),
          cell(one.started === null ? "–" : duration(one.finished - started)),
          cell(one.batch || "–"),
          make("td.number", { title: reasons.get(`${one.model} ${one.batch}`) ?? "" }, one.size || "–"),
          make("td", {}, one.outcome),
        );
      }),
    );
  }
}

/** Put what overlaps into lanes; what does not fit into the last one is drawn over others there. */
function lanes(items, begin, end) {
  const found = [];
  const ends = [];
  for (const one of [...items].sort((a, b) => begin(a) - begin(b))) {
    let at = ends.findIndex((free) => free <= begin(one) + 1e-9);
    if (at < 0) at = Math.min(ends.length, MAX_LANES - 1);
    (found[at] ??= []).push(one);
    ends[at] = Math.max(ends[at] ?? 0, end(one));
  }
  return found;
}

function fit(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > room) length -= 1;
  return `${text.slice(0, length)}…`;
}
