// Continue a prompt, in JavaScript: every import below is an interface of inferlet_py/wit.

import { allocKvpage } from "pie:inferlet/allocate@0.1.0";
import { readStream, startStream, takeChunk } from "pie:inferlet/decode@0.1.0";
import { forwardText } from "pie:inferlet/forward@0.1.0";
import { send } from "pie:inferlet/messaging@0.1.0";
import { getModel } from "pie:inferlet/models@0.1.0";
import { createQueue } from "pie:inferlet/queues@0.1.0";
import { getArguments } from "pie:inferlet/runtime@0.1.0";
import { finish } from "pie:inferlet/tickets@0.1.0";
import { tokenize } from "pie:inferlet/tokenize@0.1.0";

const QUEUE = 1; // handles are numbers that the program chooses
const STREAM = 1;
const GREEDY = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0n, processor: 0 };

const ARGUMENTS = {
  type: "object",
  properties: {
    prompt: { type: "string", default: "Once upon a time", description: "The text to continue." },
    max_tokens: { type: "integer", default: 64, description: "Most tokens to generate." },
  },
  required: [],
};

function range(length, start = 0) {
  return Array.from({ length }, (_, index) => start + index);
}

function generate({ prompt = "Once upon a time", max_tokens = 64 }) {
  const model = getModel("");
  createQueue(QUEUE, "");
  const tokens = tokenize("", prompt, true);
  const pages = range(Math.ceil((tokens.length + max_tokens) / model.kvPageSize), 1);
  allocKvpage(QUEUE, pages);

  // Prefill: all but the last token, for their keys and values alone.
  const start = tokens.length - 1;
  const context = { pages, adapter: "" };
  if (start > 0) {
    const beginning = { tokens: tokens.slice(0, start), positions: range(start), start: 0 };
    finish(forwardText(QUEUE, { ...context, ...beginning, outputs: [] }));
  }

  // Decode: the loop runs beside the engine, and what it has sampled is read as it comes.
  startStream(QUEUE, STREAM, {
    ...context,
    tokens: tokens.slice(start),
    positions: range(1, start),
    start,
    sampler: GREEDY,
    maxTokens: max_tokens,
    stopTokens: model.eosTokens,
    stopTexts: [],
    logprobs: false,
    maxUnread: 16,
  });
  send(prompt);
  let count = 0;
  for (;;) {
    const chunk = takeChunk(readStream(STREAM)); // suspends this program, not the server
    send(chunk.text);
    count += chunk.tokens.length;
    if (chunk.finish !== undefined) return { tokens: count, finish: chunk.finish };
  }
}

export const program = {
  run() {
    try {
      return JSON.stringify(generate(JSON.parse(getArguments())));
    } catch (error) {
      // What a host function refuses is thrown with the WIT's record as its payload.
      const { code = error.name, message = error.message } = error.payload ?? {};
      throw { kind: code, message, traceback: `${code}: ${message}\n${error.stack ?? ""}` };
    }
  },

  describe() {
    const documentation = "Continue a prompt.";
    return JSON.stringify({ name: "javascript", documentation, arguments: ARGUMENTS, result: {} });
  },
};
