// A field that sends messages to an instance, and a button that ends it.

import { ask, instancePath } from "./api.js";
import { make } from "./dom.js";

/** Return a form that sends lines to the instance of that id. */
export function messageForm(id, transcript, { onProblem }) {
  const input = make("input", { type: "text", id: `message-${id}`, autocomplete: "off" });
  const form = make(
    "form.inline-form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        const text = input.value;
        if (!text) return;
        input.value = "";
        transcript.sent(text);
        try {
          await ask("POST", instancePath(id, "/messages"), { text });
        } catch (error) {
          onProblem(error);
        }
      },
    },
    make("div", {}, make("label.visually-hidden", { htmlFor: input.id }, `Message to ${id}`), input),
    make("button", { type: "submit" }, "Send"),
  );
  input.placeholder = "Send a message";
  return form;
}

/** Return a button that asks once more before it cancels. */
export function cancelButton(id, { onProblem }) {
  let isSure = false;
  let timer = 0;
  const button = make("button.danger", { type: "button" }, "Cancel instance");
  const reset = () => {
    isSure = false;
    button.textContent = "Cancel instance";
  };
  button.addEventListener("click", async () => {
    clearTimeout(timer);
    if (!isSure) {
      isSure = true;
      button.textContent = "Really cancel?";
      timer = setTimeout(reset, 4000);
      return;
    }
    reset();
    button.disabled = true;
    try {
      await ask("POST", instancePath(id, "/cancel"));
    } catch (error) {
      button.disabled = false;
      onProblem(error);
    }
  });
  return button;
}
