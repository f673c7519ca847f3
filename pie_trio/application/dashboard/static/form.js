// A form made from the JSON Schema of a program's arguments.

import { make } from "./dom.js";

const LONG = 60;

/** Return `{element, read}`; `read` returns the arguments, or null after it has shown what is wrong. */
export function schemaForm(schema, idPrefix) {
  const fields = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    makeField(name, property, (schema.required ?? []).includes(name), `${idPrefix}-${name}`),
  );
  const element = make("div.fields", {}, ...fields.map((field) => field.element));
  return {
    element,
    isEmpty: fields.length === 0,
    read() {
      const values = {};
      let firstWrong = null;
      for (const field of fields) {
        const { value, error } = field.read();
        field.complain(error);
        if (error) firstWrong ??= field;
        else if (value !== undefined) values[field.name] = value;
      }
      firstWrong?.control.focus();
      return firstWrong ? null : values;
    },
  };
}

function makeField(name, property, isRequired, id) {
  const { schema, isNullable } = withoutNull(property);
  const kind = kindOf(schema);
  const { control, read } = CONTROLS[kind](schema, property.default, id, isRequired, isNullable);
  const hintId = `${id}-hint`;
  const errorId = `${id}-error`;
  const error = make("p.error", { id: errorId, hidden: true });
  const hint = property.description ? make("p.hint", { id: hintId }, property.description) : null;
  control.id = id;
  control.classList.toggle("short", ["integer", "number", "choice"].includes(kind));
  control.required = isRequired && kind !== "boolean";
  control.setAttribute("aria-describedby", [hint && hintId, errorId].filter(Boolean).join(" "));
  const type = make("span.type", {}, `${describe(property)}${isRequired ? ", required" : ""}`);
  const label = make("label", { htmlFor: id }, name, type);
  const element =
    kind === "boolean" ? make("div.field", {}, make("div.row", {}, control, label), hint, error) : make("div.field", {}, label, hint, control, error);
  return {
    name,
    control,
    element,
    read,
    complain(text) {
      error.hidden = !text;
      error.textContent = text ?? "";
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    },
  };
}

function withoutNull(property) {
  const options = property.anyOf;
  if (!options) return { schema: property, isNullable: property.type === "null" };
  const rest = options.filter((one) => one.type !== "null");
  const isNullable = rest.length < options.length;
  return { schema: rest.length === 1 ? rest[0] : { anyOf: rest }, isNullable };
}

function kindOf(schema) {
  if (schema.enum) return "choice";
  if (["string", "integer", "number", "boolean"].includes(schema.type)) return schema.type;
  return "json";
}

function describe(schema) {
  if (schema.anyOf) return schema.anyOf.map(describe).join(" or ");
  if (schema.enum) return "one of a few";
  if (schema.type === "array") return schema.items?.type ? `list of ${schema.items.type}` : "list";
  return { string: "text", integer: "whole number", number: "number", boolean: "yes or no", object: "JSON object", null: "nothing" }[schema.type] ?? "JSON";
}

// An empty field that need not be there is left out: then the program's own default counts.
const left = (isRequired) => (isRequired ? { error: "This is required." } : { value: undefined });

const CONTROLS = {
  string(schema, given, id, isRequired, isNullable) {
    const isLong = typeof given === "string" && (given.length > LONG || given.includes("\n"));
    const isText = isLong || /prompt|text|question|document|task|source/.test(id);
    const control = isText ? make("textarea", { rows: isLong ? 4 : 2 }) : make("input", { type: "text" });
    control.value = given ?? "";
    return {
      control,
      read: () => {
        if (control.value !== "") return { value: control.value };
        if (isNullable) return { value: undefined };
        return isRequired ? left(true) : { value: given === "" || given === undefined ? undefined : "" };
      },
    };
  },
  integer: (schema, given, id, isRequired) => numeric(given, isRequired, 1, /^[+-]?\d+$/, "Expected a whole number, as 32."),
  number: (schema, given, id, isRequired) => numeric(given, isRequired, "any", /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i, "Expected a number, as 0.8."),
  boolean(schema, given) {
    const control = make("input", { type: "checkbox", checked: given === true });
    return { control, read: () => ({ value: control.checked }) };
  },
  choice(schema, given, id, isRequired) {
    const values = schema.enum;
    const options = values.map((value, at) => make("option", { value: String(at), selected: value === given }, String(value)));
    if (!isRequired && !values.includes(given)) options.unshift(make("option", { value: "", selected: true }, "(not given)"));
    const control = make("select", {}, ...options);
    return { control, read: () => (control.value === "" ? left(isRequired) : { value: values[Number(control.value)] }) };
  },
  json(schema, given, id, isRequired) {
    const control = make("textarea.json", { rows: 3, spellcheck: false });
    control.value = given === undefined || given === null ? "" : JSON.stringify(given, null, 2);
    control.placeholder = schema.type === "array" ? '["…"]' : schema.type === "object" ? '{"…": …}' : "JSON";
    return {
      control,
      read: () => {
        if (control.value.trim() === "") return left(isRequired);
        try {
          return { value: JSON.parse(control.value) };
        } catch (error) {
          return { error: `Expected JSON: ${error.message}` };
        }
      },
    };
  },
};

function numeric(given, isRequired, step, pattern, complaint) {
  // Text rather than type="number", which swallows what it does not understand.
  const control = make("input", { type: "text", inputMode: step === 1 ? "numeric" : "decimal" });
  control.value = given ?? "";
  return {
    control,
    read: () => {
      const text = control.value.trim();
      if (text === "") return left(isRequired);
      return pattern.test(text) ? { value: Number(text) } : { error: complaint };
    },
  };
}
