// Charts on canvases. They are drawn when there is something new, so nothing ever animates.

import { cssColor } from "./dom.js";

const LEFT = 54;
const BOTTOM = 20;
const TOP = 8;
const WINDOWS = [1, 2, 4, 8, 15];

/** Prepare a canvas of the width that its box has; returns its context and size in CSS pixels. */
export function prepare(canvas, height) {
  const width = Math.max(120, Math.floor(canvas.parentElement.clientWidth - padding(canvas.parentElement)));
  const scale = Math.min(3, devicePixelRatio || 1);
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `12px ${cssColor("--sans")}`;
  return { context, width, height };
}

function padding(box) {
  const style = getComputedStyle(box);
  return parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
}

/** The next round number above: 1, 2, 5, 10, 20, ... */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function axes({ context, width, height }, { top, format, seconds }) {
  const bottom = height - BOTTOM;
  context.strokeStyle = cssColor("--grid");
  context.fillStyle = cssColor("--muted");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const part of [0, 0.5, 1]) {
    const y = Math.round(bottom - part * (bottom - TOP)) + 0.5;
    context.beginPath();
    context.moveTo(LEFT, y);
    context.lineTo(width, y);
    context.stroke();
    context.fillText(format(top * part), LEFT - 8, y);
  }
  context.textBaseline = "bottom";
  for (const part of [0, 0.5, 1]) {
    context.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
    const ago = seconds * (1 - part);
    const label = part === 1 ? "now" : `${ago % 1 ? ago.toFixed(1) : ago} s ago`;
    context.fillText(label, LEFT + part * (width - LEFT), height);
  }
  return { left: LEFT, right: width, top: TOP, bottom };
}

/** Lines over time: `series` are `{color, values}` with one value a point. */
export function drawLines(canvas, { times, series, now, seconds, format, height = 150 }) {
  const view = prepare(canvas, height);
  const top = ceiling(Math.max(0, ...series.flatMap((one) => one.values)));
  const box = axes(view, { top, format, seconds });
  const { context } = view;
  const x = (at) => box.right - ((now - at) / seconds) * (box.right - box.left);
  const y = (value) => box.bottom - (value / top) * (box.bottom - box.top);
  context.save();
  context.beginPath();
  context.rect(box.left, 0, box.right - box.left, box.bottom + 2);
  context.clip();
  for (const { color, values, isFilled } of series) {
    if (!values.length) continue;
    context.beginPath();
    values.forEach((value, at) => context.lineTo(x(times[at]), y(value)));
    context.strokeStyle = cssColor(color);
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.stroke();
    if (isFilled) {
      context.lineTo(x(times.at(-1)), box.bottom);
      context.lineTo(x(times[0]), box.bottom);
      context.globalAlpha = 0.12;
      context.fillStyle = cssColor(color);
      context.fill();
      context.globalAlpha = 1;
    }
  }
  context.restore();
}

/** The time that fits the batches that are kept: a busy server makes hundreds a second. */
export function windowOf(batches, now) {
  const age = batches.length ? now - batches[0][4] : Infinity;
  return WINDOWS.find((seconds) => seconds >= age) ?? WINDOWS.at(-1);
}

/** Batches over time: a bar each, as high as its size and as wide as it took. */
export function drawBatches(canvas, { batches, now, seconds, height = 150 }) {
  const view = prepare(canvas, height);
  const shown = batches.filter(([, , , , began]) => began > now - seconds);
  const top = Math.max(2, ceiling(Math.max(0, ...shown.map(([, , size]) => size))));
  const box = axes(view, { top, format: (value) => (Number.isInteger(value) ? String(value) : ""), seconds });
  const { context } = view;
  const perSecond = (box.right - box.left) / seconds;
  for (const [, kind, size, , began, took] of shown) {
    const left = box.right - (now - began) * perSecond;
    const tall = (size / top) * (box.bottom - box.top);
    context.fillStyle = cssColor(BATCH_COLORS[kind] ?? "--line-3");
    const wide = Math.max(1, took * perSecond - 0.75); // a gap tells one from the next
    const from = Math.max(box.left, left);
    if (left + wide > box.left) context.fillRect(from, box.bottom - tall, left + wide - from, tall);
  }
  context.globalAlpha = 1;
}

export const BATCH_COLORS = { forward: "--line-1", project: "--line-2", copy: "--line-3" };
