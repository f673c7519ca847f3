// The part of Markdown that READMEs need, as elements. What is not understood stays text.

import { make } from "./dom.js";

/** Return the elements of a document. Links lead to http and https only. */
export function markdown(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const found = [];
  let at = 0;
  const take = (test) => {
    const taken = [];
    while (at < lines.length && test(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)/);
    const heading = line.match(/^(#{1,6})\s+(.*?)\s*#*$/);
    if (fence) {
      at += 1;
      const code = take((one) => !one.trim().startsWith(fence[1]));
      at += 1;
      found.push(make("pre", { tabIndex: 0 }, make("code", {}, code.join("\n"))));
    } else if (heading) {
      at += 1;
      found.push(make(heading[1].length < 3 ? "h3" : "h4", {}, ...inline(heading[2])));
    } else if (/^\s*([-*+]|\d+[.)])\s+/.test(line)) {
      const isOrdered = /^\s*\d/.test(line);
      const taken = take((one) => one.trim() !== "" && !/^#/.test(one));
      const items = [];
      for (const one of taken) {
        const item = one.match(/^\s*(?:[-*+]|\d+[.)])\s+(.*)$/);
        if (item || !items.length) items.push(item ? item[1] : one);
        else items[items.length - 1] += ` ${one.trim()}`;
      }
      found.push(make(isOrdered ? "ol" : "ul", {}, ...items.map((item) => make("li", {}, ...inline(item)))));
    } else if (/^\s*\|.*\|\s*$/.test(line)) {
      found.push(table(take((one) => /^\s*\|/.test(one))));
    } else if (line.trim() === "") {
      at += 1;
    } else {
      const taken = [line, ...(at++, take((one) => one.trim() !== "" && !/^(#|\s*```|\s*~~~|\s*[-*+]\s|\s*\|)/.test(one)))];
      found.push(make("p", {}, ...inline(taken.map((one) => one.trim()).join(" "))));
    }
  }
  return found;
}

function table(lines) {
  const rows = lines.map((line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const isRule = (row) => row.every((cell) => /^:?-+:?$/.test(cell));
  const hasHead = rows.length > 1 && isRule(rows[1]);
  const cells = (row, tag) => make("tr", {}, ...row.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell))));
  const body = rows.filter((row, at) => !(hasHead && at < 2)).map((row) => cells(row, "td"));
  return make("div.table-box", { tabIndex: 0, role: "group", "aria-label": "Table" }, make("table", {}, hasHead ? make("thead", {}, cells(rows[0], "th")) : null, make("tbody", {}, ...body)));
}

function inline(text) {
  const found = [];
  const pattern = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\(([^)\s]+)\)|<(https?:\/\/[^>\s]+)>/g;
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    found.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [, code, bold, italic, name, target, address] = match;
    if (code) found.push(make("code", {}, code));
    else if (bold) found.push(make("strong", {}, bold));
    else if (italic) found.push(make("em", {}, italic));
    else found.push(link(name ?? address, target ?? address));
  }
  found.push(text.slice(end));
  return found.filter((one) => one !== "");
}

function link(name, target) {
  if (!/^https?:\/\//.test(target)) return name; // a file beside the README, which is not here
  return make("a", { href: target, rel: "noreferrer noopener", target: "_blank" }, name);
}
