// One instance: what it is, its timeline, what it tells, a message to it, its end.

import { ask, events, instancePath } from "./api.js";
import { age, count, empty, make, panel, problem, setText } from "./dom.js";
import { badge } from "./overview.js";
import { cancelButton, messageForm } from "./sending.js";
import { SPANS, Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

const POLL_MS = 1000;
const RETRY_MS = 2000;

export function showInstance(main, id) {
  document.title = `${id} · Pie`;
  const own = new AbortController();
  const state = make("span");
  const program = make("p");
  const facts = Object.fromEntries(["Age", "Pages", "Calls on their way", "Tokens computed", "Tokens sampled", "Client"].map((name) => [name, make("dd", {}, "–")]));
  const timeline = new Timeline();
  const messages = new Transcript("Messages and result");
  const log = new Transcript("Log");
  messages.element.hidden = log.element.hidden = true;
  const noMessages = empty("Nothing yet", "What the program sends with send() appears here.");
  const noLog = empty("No lines", "What the program logs and prints appears here.");
  const problems = make("div");
  const onProblem = (error) => problems.replaceChildren(problem(error));
  const actions = make("div.actions-head", {}, cancelButton(id, { onProblem }));
  const send = messageForm(id, { sent: (text) => show(messages, noMessages, () => messages.sent(text)) }, { onProblem });
  actions.hidden = send.hidden = true;
  const spans = make(
    "div.segments",
    { role: "radiogroup", "aria-label": "How much of the timeline" },
    ...SPANS.map(([value, text]) => make("label", {}, make("input.visually-hidden", { type: "radio", name: "span", value, checked: value === timeline.span, onchange: () => { timeline.span = value; timeline.draw(); } }), text)),
  );
  const body = make(
    "div.stack",
    {},
    make("section.panel", { "aria-label": "Facts" }, make("dl.facts", {}, ...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), value)))),
    panel("Timeline", { id: "timeline", extra: spans }, timeline.canvas, timeline.under, make("details", {}, make("summary", {}, "Latest calls"), make("div.table-box.flat", { tabIndex: 0, role: "group", "aria-label": "Latest calls, a table" }, timeline.table))),
    make("div.two", {}, panel("Messages", { id: "messages" }, messages.element, noMessages, send), panel("Log", { id: "log" }, log.element, noLog)),
  );
  main.replaceChildren(
    make("div.head", {}, make("div", {}, make("p.crumb", {}, make("a", { href: "#/" }, "Overview"), " / instance"), make("h1", {}, id, " ", state), program), actions),
    problems,
    body,
  );

  function show(transcript, none, change) {
    none.hidden = true;
    transcript.element.hidden = false;
    change();
  }

  async function poll() {
    try {
      const data = await ask("GET", instancePath(id, "/timeline"));
      if (own.signal.aborted) return;
      problems.replaceChildren();
      fill(data);
      timeline.draw(data);
      if (data.state === "running") timer = setTimeout(poll, POLL_MS);
    } catch (error) {
      if (own.signal.aborted) return;
      if (error.status === 404) return gone(error);
      onProblem(error);
      timer = setTimeout(poll, RETRY_MS);
    }
  }

  function gone(error) {
    body.hidden = actions.hidden = true;
    problems.replaceChildren(empty("This instance is not there", error.message, make("a", { href: "#/" }, "Overview")));
  }

  function fill(data) {
    if (state.textContent !== data.state) state.replaceChildren(badge(data.state));
    if (!program.childElementCount) program.append("runs ", make("a", { href: `#/programs/${encodeURIComponent(data.program)}` }, data.program));
    const values = [age(data.seconds), count(data.pages), count(data.commands_in_flight), count(data.tokens_computed ?? 0), count(data.tokens_sampled ?? 0), data.detached ? "detached" : "attached"];
    Object.values(facts).forEach((fact, at) => setText(fact, values[at]));
    actions.hidden = send.hidden = data.state !== "running";
  }

  async function follow() {
    let after = 0;
    while (!own.signal.aborted) {
      try {
        for await (const event of events("GET", instancePath(id, `/events?after=${after}`), { signal: own.signal })) {
          after = Math.max(after, event.id);
          if (event.kind === "log") show(log, noLog, () => log.take(event));
          else if (["message", "result", "error", "lost"].includes(event.kind)) show(messages, noMessages, () => messages.take(event));
          else if (event.kind === "end") {
            clearTimeout(timer);
            poll();
            return;
          }
        }
      } catch (error) {
        if (own.signal.aborted || error.status === 404) return;
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  let timer = 0;
  poll();
  follow();
  const redraw = () => timeline.draw();
  const observer = new ResizeObserver(redraw);
  observer.observe(main);
  addEventListener("pie-theme", redraw);
  return () => {
    own.abort();
    clearTimeout(timer);
    observer.disconnect();
    removeEventListener("pie-theme", redraw);
  };
}
