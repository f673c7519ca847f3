// A server with keys: a key is traded for a cookie that scripts cannot read.

import { ask } from "./api.js";
import { make, panel, problem } from "./dom.js";

export function showLogin(main, onDone) {
  document.title = "Log in · Pie";
  const input = make("input", { type: "password", id: "key", autocomplete: "current-password", required: true, spellcheck: false });
  const failure = make("div");
  const button = make("button.primary", { type: "submit" }, "Log in");
  const form = make(
    "form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        button.disabled = true;
        try {
          await ask("POST", "/v1/login", { key: input.value.trim() });
          onDone();
        } catch (error) {
          failure.replaceChildren(problem(error));
          button.disabled = false;
          input.select();
        }
      },
    },
    make("p.muted", {}, "This server asks for a key. Whoever runs it makes one with ", make("code", {}, "pie keys add NAME"), "."),
    make("div.field", {}, make("label", { htmlFor: "key" }, "Key"), input),
    failure,
    button,
  );
  main.replaceChildren(make("div.login", {}, panel("Log in", { id: "login" }, form)));
  main.querySelector("h2").replaceWith(make("h1", { id: "login-heading" }, "Log in"));
  input.focus();
  return () => {};
}
