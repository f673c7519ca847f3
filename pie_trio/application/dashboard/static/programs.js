// Programs: the list, what one is and takes, a form that launches it, and what it then tells.

import { ask, events, instancePath, programPath } from "./api.js";
import { bytes, empty, make, panel, problem } from "./dom.js";
import { schemaForm } from "./form.js";
import { markdown } from "./markdown.js";
import { badge } from "./overview.js";
import { messageForm } from "./sending.js";
import { Transcript } from "./transcript.js";

export function showPrograms(main, name) {
  document.title = `${name ?? "Programs"} · Pie`;
  const own = new AbortController();
  const list = make("ul.list");
  const chooser = panel("All programs", { id: "programs", className: "chooser" }, list);
  const detail = make("div.stack");
  const split = make(`div.split${name ? ".has-choice" : ""}`, {}, chooser, detail);
  const crumb = name ? make("p.crumb", {}, make("a", { href: "#/programs" }, "Programs"), ` / ${name}`) : null;
  main.replaceChildren(make("div.head", {}, make("div", {}, crumb, make("h1", {}, name ?? "Programs"))), split);
  fillList();
  if (name) showOne();
  else detail.append(empty("Choose a program", "You see what it takes, and can launch it."));

  async function fillList() {
    try {
      const { programs } = await ask("GET", "/v1/programs");
      if (own.signal.aborted) return;
      if (!programs.length) chooser.replaceChildren(empty("No programs", "Send one to the server:", make("code", {}, "pie deploy my_program.py")));
      list.replaceChildren(
        ...programs.map((one) =>
          make("li", {}, make("a", { href: `#/programs/${encodeURIComponent(one.name)}`, "aria-current": one.name === name ? "page" : null }, one.name, make("small", {}, one.built_in ? "comes with Pie" : `yours, ${bytes(one.bytes)}`))),
        ),
      );
    } catch (error) {
      if (!own.signal.aborted) chooser.append(problem(error));
    }
  }

  async function showOne() {
    detail.replaceChildren(empty("Loading", "The server asks the program what it takes."));
    let program;
    try {
      program = await ask("GET", programPath(name));
    } catch (error) {
      if (!own.signal.aborted) detail.replaceChildren(problem(error));
      return;
    }
    if (own.signal.aborted) return;
    const about = program.readme ?? program.documentation;
    const readme = about ? panel(program.readme ? "README" : "What it does", { id: "readme" }, make("div.prose", {}, ...markdown(about))) : null;
    const intro = program.readme && program.documentation ? make("p.muted", {}, program.documentation) : null;
    detail.replaceChildren(...[intro, ...launcher(program, own.signal), readme].filter(Boolean));
  }

  return () => own.abort();
}

/** Return the form of a program, and the panel of what it tells. */
function launcher(program, leaving) {
  const form = schemaForm(program.arguments, "argument");
  const detach = make("input", { type: "checkbox", id: "detach" });
  const run = make("button.primary", { type: "submit" }, "Launch");
  const stop = make("button", { type: "button", hidden: true }, "Cancel");
  const transcript = new Transcript(`What ${program.name} tells`);
  const state = make("span.aside");
  const send = make("div");
  const output = panel("Output", { id: "output", extra: state }, transcript.element, send);
  output.hidden = true;
  let running = null;
  let id = null;
  leaving.addEventListener("abort", () => running?.abort());

  stop.addEventListener("click", async () => {
    stop.disabled = true;
    try {
      if (id) await ask("POST", instancePath(id, "/cancel"));
      else running?.abort();
    } catch (error) {
      transcript.add(problem(error));
    }
  });

  const element = make(
    "form",
    {
      noValidate: true,
      onsubmit: (event) => {
        event.preventDefault();
        const values = form.read();
        if (values !== null) launch(values);
      },
    },
    form.isEmpty ? make("p.muted", {}, "It takes no arguments.") : form.element,
    make("div.actions", {}, run, stop, make("label", { htmlFor: "detach" }, detach, "Let it run when this page is closed")),
  );

  async function launch(values) {
    running = new AbortController();
    id = null;
    let end = null;
    run.disabled = true;
    stop.hidden = stop.disabled = false;
    output.hidden = false;
    transcript.clear();
    send.replaceChildren();
    state.replaceChildren(badge("running"));
    const asked = { program: program.name, arguments: values, detach: detach.checked };
    try {
      for await (const event of events("POST", "/v1/instances", { body: asked, signal: running.signal })) {
        if (event.kind === "started") {
          id = event.data.id;
          state.replaceChildren(make("a.mono", { href: `#/instances/${encodeURIComponent(id)}` }, id), " ", badge("running"));
        } else if (event.kind === "receiving") {
          send.replaceChildren(messageForm(id, transcript, { onProblem: (error) => transcript.add(problem(error)) }));
        } else if (event.kind === "end") {
          end = event.data;
        } else {
          transcript.take(event);
        }
      }
      if (!end) transcript.add(problem(new Error("The connection ended before the program did: the server stopped, or the network did.")));
    } catch (error) {
      if (!leaving.aborted) transcript.add(problem(error));
    }
    run.disabled = false;
    stop.hidden = true;
    send.replaceChildren();
    running = null;
    const shown = [badge(end?.state ?? "failed"), end ? ` after ${end.seconds.toFixed(2)} s, ${end.tokens_sampled ?? 0} tokens sampled` : ""];
    state.replaceChildren(...(id ? [make("a.mono", { href: `#/instances/${encodeURIComponent(id)}` }, id), " "] : []), ...shown);
  }

  return [panel("Launch", { id: "launch" }, element), output];
}
