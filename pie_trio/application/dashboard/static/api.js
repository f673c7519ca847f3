// Requests to the server, and streams of its events.

export class ApiError extends Error {
  /** What the server refused: `status`, `code`, and a program's `traceback` if it is at fault. */
  constructor(status, fields) {
    super(fields.message || `the server answers ${status}`);
    this.status = status;
    this.code = fields.code;
    this.traceback = fields.traceback;
  }
}

const listeners = new Set();

/** Call when the server asks for a key. */
export const onUnauthorized = (listener) => listeners.add(listener);

async function send(method, path, { body, accept = "application/json", signal } = {}) {
  const headers = { accept };
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "the server does not answer", code: "unreachable" });
  }
  if (response.ok) return response;
  let fields = {};
  try {
    fields = (await response.json()).error ?? {};
  } catch {
    // a proxy's answer
  }
  if (response.status === 401) for (const listener of listeners) listener();
  throw new ApiError(response.status, fields);
}

export async function ask(method, path, body) {
  return (await send(method, path, { body })).json();
}

/** Yield `{kind, data, id}` for each event of an answer, until it ends or `signal` aborts. */
export async function* events(method, path, { body, signal } = {}) {
  const response = await send(method, path, { body, signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever leaves the loop leaves the stream
  }
}

function parse(block) {
  const event = { kind: "message", data: null, id: 0 };
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    const name = line.slice(0, at);
    const value = line.slice(at + 2);
    if (name === "event") event.kind = value;
    else if (name === "id") event.id = Number(value);
    else if (name === "data") event.data = JSON.parse(value);
  }
  return event.data === null ? null : event; // a comment keeps the connection
}

export const instancePath = (id, rest = "") => `/v1/instances/${encodeURIComponent(id)}${rest}`;
export const programPath = (name) => `/v1/programs/${encodeURIComponent(name)}`;
