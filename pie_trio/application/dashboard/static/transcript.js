// What an instance tells, as it comes: messages, lines of its log, its result or error.

import { make, problem } from "./dom.js";

const MAX_NODES = 2000;
const NEAR_END = 40;

export class Transcript {
  constructor(label) {
    this.element = make("div.transcript", { tabIndex: 0, role: "log", "aria-label": label, "aria-live": "off" });
    this.last = null;
  }

  clear() {
    this.element.replaceChildren();
    this.last = null;
  }

  /** Show an event; returns whether it was one to show. */
  take({ kind, data }) {
    const stays = this.isAtEnd();
    switch (kind) {
      case "message":
        this.text(data.text ?? `[${Math.floor((data.binary.length * 3) / 4)} bytes]`);
        break;
      case "log":
        this.line("log", data.source === "stdout" || data.source === "stderr" ? data.text : `[${data.source}] ${data.text}`);
        break;
      case "result":
        if (data.value !== null) this.line("result", typeof data.value === "string" ? data.value : JSON.stringify(data.value, null, 2));
        break;
      case "error":
        this.add(problem(data));
        break;
      case "lost":
        this.line("note", `${data.events ?? data.lines} earlier events are not kept any more`);
        break;
      default:
        return false;
    }
    this.settle(stays);
    return true;
  }

  /** Pieces of text go on in the line where the last one ended. */
  text(text) {
    if (!this.last) {
      this.last = document.createTextNode("");
      this.add(this.last, true);
    }
    this.last.appendData(text);
  }

  line(kind, text) {
    this.add(make(`span.${kind}`, {}, text));
  }

  sent(text) {
    const stays = this.isAtEnd();
    this.line("sent", `› ${text}`);
    this.settle(stays);
  }

  add(node, isText = false) {
    if (!isText) this.last = null;
    this.element.append(node);
    while (this.element.childNodes.length > MAX_NODES) this.element.firstChild.remove();
  }

  isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  settle(stays) {
    if (stays) this.element.scrollTop = this.element.scrollHeight; // unless somebody reads above
  }
}
