// Elements, texts and numbers. Texts never become markup: there is no innerHTML anywhere.

/** Make an element: `make("p.note", {title: "x", onclick: f}, "text", child)`. */
export function make(what, props = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set a text, unless it is there: what does not change is not announced, selected or laid out. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (value) => Math.round(value).toLocaleString("en-US");

/** Three digits or so: 0.42, 4.2, 42, 420, 4.2k. */
export function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (value >= 100 || value === 0) return Math.round(value).toString();
  return value >= 10 ? value.toFixed(0) : value.toFixed(value < 1 ? 2 : 1);
}

/** A time that is short: 250 µs, 4.2 ms, 1.5 s. */
export function duration(seconds) {
  if (seconds === 0) return "0 ms";
  if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return age(seconds);
}

/** A time that is long: 4.2 s, 3 min 5 s, 2 h 5 min, 3 d 4 h. */
export function age(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  if (value < 1 << 20) return `${(value / 1024).toFixed(1)} KiB`;
  return value < 1 << 30 ? `${(value / (1 << 20)).toFixed(1)} MiB` : `${(value / (1 << 30)).toFixed(1)} GiB`;
}

export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString("en-GB", { hour12: false });

export const NARROW_SPACE = "\u202f";
export const cssColor = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A box with a heading. */
export function panel(title, { id, extra = null, className = "" } = {}, ...children) {
  const headingId = `${id}-heading`;
  const heading = make("h2", { id: headingId }, title);
  const head = make("div.panel-head", {}, heading, extra);
  return make(`section.panel${className ? "." + className : ""}`, { id, "aria-labelledby": headingId }, head, ...children);
}

export function empty(title, ...rest) {
  return make("div.empty", {}, make("p.empty-title", {}, title), ...rest.map((text) => (typeof text === "string" ? make("p", {}, text) : text)));
}

export function problem(error) {
  const box = make("div.problem", { role: "alert" }, make("p", {}, error.message));
  if (error.traceback) box.append(make("pre", { tabIndex: 0, "aria-label": "Traceback" }, error.traceback));
  return box;
}
