// The map of KV pages: a cell a page, coloured by the instance that holds it.

import { prepare } from "./charts.js";
import { count, cssColor, make, setText } from "./dom.js";

const [FREE, KEPT, SHARED, OTHERS, FIRST] = [0, 1, 2, 3, 4];
const NAMED = 10;
const MAX_HEIGHT = 260;
const SIZES = [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2];
const KINDS = {
  [FREE]: ["free", "--page-free"],
  [KEPT]: ["kept by exports", "--page-kept"],
  [SHARED]: ["shared by instances", "--page-shared"],
  [OTHERS]: ["of other users or children", "--page-others"],
};

export const ownerColor = (code) => KINDS[code]?.[1] ?? `--o${(code - FIRST) % 12}`;

export class PageMap {
  constructor() {
    this.canvas = make("canvas", { role: "img", "aria-label": "KV pages" });
    this.legend = make("ul.legend", { "aria-label": "Who holds how many pages" });
    this.under = make("p.under");
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => (this.under.textContent = this.hint));
    this.hint = "";
    this.entries = new Map();
    this.more = make("li.muted");
  }

  draw(model, instances) {
    this.model = model;
    this.names = new Map([...instances].filter((one) => one.code).map((one) => [one.code, one]));
    const { cells } = model;
    const width = this.canvas.parentElement.clientWidth;
    const size = SIZES.find((side) => Math.ceil(cells.length / Math.floor((width - 32) / side)) * side <= MAX_HEIGHT) ?? 2;
    this.columns = Math.max(1, Math.floor((width - 32) / size));
    this.size = size;
    const rows = Math.ceil(cells.length / this.columns);
    const { context } = prepare(this.canvas, rows * size);
    const gap = size > 4 ? 1 : size > 2 ? 0.5 : 0;
    const byCode = new Map();
    cells.forEach((code, at) => {
      if (!byCode.has(code)) byCode.set(code, []);
      byCode.get(code).push(at);
    });
    for (const [code, places] of byCode) {
      context.fillStyle = cssColor(ownerColor(code));
      for (const at of places) {
        context.fillRect((at % this.columns) * size, Math.floor(at / this.columns) * size, size - gap, size - gap);
      }
    }
    this.describe(byCode);
  }

  describe(byCode) {
    const per = this.model.map.pages_per_cell;
    const used = this.model.pages - this.model.pages_free;
    const about = per > 1 ? `a cell is ${per} pages; ` : "";
    const swapped = this.model.pages_swapped ? `; ${count(this.model.pages_swapped)} more in host memory` : "";
    this.hint = `${about}${count(used)} of ${count(this.model.pages)} pages are used${swapped}`;
    if (!this.canvas.matches(":hover")) this.under.textContent = this.hint;
    this.canvas.setAttribute("aria-label", `KV pages: ${this.hint}`);
    const counts = [...byCode].map(([code, places]) => [code, places.length * per]);
    const owners = counts.filter(([code]) => code >= FIRST).sort((a, b) => b[1] - a[1]);
    const kinds = counts.filter(([code]) => code < FIRST).sort((a, b) => b[0] - a[0]);
    const named = owners.slice(0, NAMED).sort((a, b) => a[0] - b[0]); // in an order that stays
    const more = owners.slice(NAMED).reduce((sum, [, pages]) => sum + pages, 0);
    const shown = [...named, ...kinds].map(([code, pages]) => this.entry(code, pages));
    if (more) {
      setText(this.more, `${owners.length - NAMED} more instances: ${count(more)}`);
      shown.push(this.more);
    }
    // What is there stays where it is, so that a link keeps the focus.
    for (const old of [...this.legend.children]) if (!shown.includes(old)) old.remove();
    shown.forEach((one, at) => {
      if (this.legend.children[at] !== one) this.legend.insertBefore(one, this.legend.children[at] ?? null);
    });
    for (const code of this.entries.keys()) if (!byCode.has(code)) this.entries.delete(code);
  }

  entry(code, pages) {
    const one = this.names.get(code);
    const known = this.entries.get(code);
    const name = one?.id ?? KINDS[code]?.[0] ?? "an instance that has ended";
    if (known?.name === name) {
      setText(known.number, count(pages));
      return known.element;
    }
    const chip = make("span.chip", { "aria-hidden": "true" });
    chip.style.background = `var(${ownerColor(code)})`;
    const label = one ? make("a", { href: `#/instances/${encodeURIComponent(one.id)}` }, name) : make("span", {}, name);
    const number = make("span.muted", {}, count(pages));
    const element = make("li", {}, chip, label, number);
    this.entries.set(code, { element, number, name });
    return element;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.size);
    const at = Math.floor((event.clientY - box.top) / this.size) * this.columns + column;
    const code = this.model?.cells[at];
    if (code === undefined || column >= this.columns) return;
    const per = this.model.map.pages_per_cell;
    const who = this.names.get(code)?.id ?? KINDS[code]?.[0] ?? "an instance that has ended";
    this.under.textContent = per > 1 ? `pages ${at * per} to ${at * per + per - 1}: mostly ${who}` : `page ${at}: ${who}`;
  }
}
