// A chat with the model: the program `chat` that comes with Pie runs as long as the conversation.

import { ask, events, instancePath } from "./api.js";
import { empty, make, problem } from "./dom.js";

// Sent by the program when it is our turn; no text of a model has it.
const MARKER = "\u001epie-turn\u001e";
const GREETING = 'Write a message. Enter sends it; Shift and Enter begin a new line.';

/** The conversation outlives the view: other views may be looked at meanwhile. */
const talk = {
  turns: [], // {who, text, isOver, note}
  id: null,
  controller: null,
  isTurn: false, // ours
  waiting: null, // resolves when it is our turn, or the program has ended
  failure: null,
  settings: { system: "", temperature: 0, max_tokens: 256 },
  onChange: () => {},
};

export function showChat(main) {
  document.title = "Chat · Pie";
  const turns = make("div.turns", { role: "log", "aria-label": "Conversation", "aria-live": "polite" });
  const input = make("textarea", { id: "chat-input", rows: 1, onkeydown: onKey });
  const sendButton = make("button.primary", { type: "submit" }, "Send");
  const stopButton = make("button", { type: "button", onclick: stop }, "Stop");
  const fresh = make("button", { type: "button", onclick: reset }, "New chat");
  const system = make("textarea", { id: "chat-system", rows: 2, value: talk.settings.system, onchange: () => (talk.settings.system = system.value) });
  const temperature = number("chat-temperature", "temperature");
  const most = number("chat-max", "max_tokens");
  const settings = make(
    "details",
    {},
    make("summary", {}, "Settings"),
    make("div.fields", {},
      make("div.three", {}, field("System message", system), field("Temperature", temperature), field("Most tokens of a reply", most)),
      make("p.muted", {}, "They count from the next new chat on.")),
  );
  const form = make(
    "form.composer",
    { onsubmit: (event) => { event.preventDefault(); submit(); } },
    make("div.box", {}, input, sendButton, stopButton),
  );
  input.setAttribute("aria-label", "Message to the model");
  input.placeholder = "Message";
  main.replaceChildren(make("div.chat", {}, make("div.head", {}, make("h1", {}, "Chat"), fresh), settings, turns, form));

  function number(id, name) {
    const control = make("input", { type: "text", inputMode: "decimal", id, value: String(talk.settings[name]) });
    control.addEventListener("change", () => {
      const value = Number(control.value);
      const isGood = control.value.trim() !== "" && (name === "temperature" ? value >= 0 : Number.isInteger(value) && value > 0);
      control.toggleAttribute("aria-invalid", false);
      if (isGood) talk.settings[name] = value;
      else control.setAttribute("aria-invalid", "true");
    });
    return control;
  }

  function onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  }

  function submit() {
    const text = input.value.trim();
    if (!text || isBusy()) return;
    input.value = "";
    say(text);
  }

  const shown = []; // an element a turn
  function draw() {
    if (!talk.turns.length) {
      turns.replaceChildren(empty("Nothing said yet", GREETING));
      shown.length = 0;
    } else if (!shown.length) turns.replaceChildren();
    talk.turns.forEach((turn, at) => {
      if (!shown[at]) {
        const text = make("span.text");
        const element = make(`div.turn.${turn.who}`, {}, make("span.who", {}, turn.who === "user" ? "You" : "Model"), text);
        turns.append(element);
        shown[at] = { element, text };
      }
      const { element, text } = shown[at];
      // What streams is announced once, when it is whole.
      element.setAttribute("aria-busy", String(!turn.isOver));
      element.classList.toggle("streaming", !turn.isOver);
      if (text.textContent !== turn.text) text.textContent = turn.text;
      if (turn.note && !element.querySelector(".problem, .note")) element.append(turn.note instanceof Error ? problem(turn.note) : make("span.note.muted", {}, turn.note));
    });
    sendButton.hidden = isBusy();
    stopButton.hidden = !isBusy();
    fresh.disabled = !talk.turns.length;
    const isNearEnd = innerHeight + scrollY > document.body.scrollHeight - 200;
    if (isBusy() && isNearEnd) scrollTo({ top: document.body.scrollHeight });
  }
  talk.onChange = draw;
  draw();
  input.focus({ preventScroll: true });
  return () => {
    talk.onChange = () => {};
  };
}

const field = (name, control) => make("div.field", {}, make("label", { htmlFor: control.id }, name), control);
const isBusy = () => talk.turns.length > 0 && !talk.turns.at(-1).isOver;

async function say(text) {
  talk.turns.push({ who: "user", text, isOver: true }, { who: "model", text: "", isOver: false });
  talk.onChange();
  const reply = talk.turns.at(-1);
  try {
    if (!talk.controller) begin();
    await talk.waiting;
    if (!talk.isTurn) throw talk.failure ?? new Error("The chat program has ended.");
    talk.isTurn = false;
    arm();
    await ask("POST", instancePath(talk.id, "/messages"), { text });
    await talk.waiting;
    if (talk.failure && !reply.isOver) throw talk.failure;
  } catch (error) {
    reply.note ??= error;
    end();
  }
  reply.isOver = true;
  talk.onChange();
}

let release = () => {};
function arm() {
  talk.waiting = new Promise((resolve) => (release = resolve));
}

/** Launch the program, and take what it sends until it ends. */
async function begin() {
  const controller = (talk.controller = new AbortController());
  talk.failure = null;
  talk.isTurn = false;
  arm();
  const free = () => {
    if (talk.controller === controller) release();
  };
  try {
    const asked = { program: "chat", arguments: { ...talk.settings, marker: MARKER } };
    for await (const event of events("POST", "/v1/instances", { body: asked, signal: controller.signal })) {
      if (talk.controller !== controller) return;
      if (event.kind === "started") talk.id = event.data.id;
      else if (event.kind === "error") talk.failure = Object.assign(new Error(event.data.message), event.data);
      else if (event.kind === "message" && event.data.text === MARKER) {
        talk.isTurn = true;
        free();
      } else if (event.kind === "message") {
        const reply = talk.turns.at(-1);
        if (reply && !reply.isOver) reply.text = (reply.text + event.data.text).replace(/^\s+/, "");
        talk.onChange();
      }
    }
    talk.failure ??= new Error("The chat program has ended: the server stopped, or the network did.");
  } catch (error) {
    if (error.name !== "AbortError") talk.failure = error;
  }
  free();
  if (talk.controller === controller) talk.controller = null;
}

function end() {
  talk.controller?.abort(); // leaving the stream cancels the instance
  talk.controller = null;
  talk.id = null;
}

/** End the reply. The program goes with it, so the next message begins anew. */
function stop() {
  const reply = talk.turns.at(-1);
  if (!reply || reply.isOver) return;
  reply.isOver = true;
  reply.note = "Stopped. The next message begins a new conversation.";
  end();
  release();
  talk.onChange();
}

function reset() {
  end();
  release();
  talk.turns = [];
  talk.onChange();
  document.getElementById("chat-input")?.focus();
}
