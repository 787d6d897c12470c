/* The API's own description, openapi.json, as a page: endpoints, fields, limits, a box to try. */

const $ = (id) => document.getElementById(id);

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

/* Descriptions mark names with backticks. */
function prose(name, text, className) {
  const node = element(name, undefined, className);
  const parts = (text ?? "").split("`");
  node.append(...parts.map((part, index) => (index % 2 ? element("code", part) : part)));
  return node;
}

function resolver(api) {
  return (schema) =>
    schema?.$ref ? schema.$ref.split("/").slice(1).reduce((node, key) => node[key], api) : schema;
}

/* Schemas as rows: name, type, meaning */

function alternatives(schema) {
  return (schema.anyOf ?? schema.oneOf ?? [schema]).filter((one) => one.type !== "null");
}

function typeName(schema, resolve) {
  return alternatives(schema)
    .map((one) => {
      if (one.enum || one.const) return [one.const ?? one.enum].flat().join(" | ");
      if (one.type === "array") return `array of ${typeName(one.items, resolve)}`;
      return resolve(one).title && one.$ref ? resolve(one).title : (one.type ?? "any");
    })
    .join(" or ");
}

const LIMITS = {
  minLength: (value) => (value === 1 ? "not empty" : `at least ${value} characters`),
  maxLength: (value) => `at most ${value.toLocaleString("en")} characters`,
  minItems: (value) => `at least ${value}`,
  maxItems: (value) => `at most ${value.toLocaleString("en")}`,
  minimum: (value) => `≥ ${value}`,
  maximum: (value) => `≤ ${value.toLocaleString("en")}`,
};

function meaning(schema) {
  const limits = [schema, ...alternatives(schema)].flatMap((one) =>
    Object.keys(LIMITS).filter((key) => key in one).map((key) => LIMITS[key](one[key])),
  );
  const fallback = schema.default ?? null;
  const parts = [schema.description ?? "", [...new Set(limits)].join(", ")];
  if (fallback !== null) parts.push(`default ${JSON.stringify(fallback)}`);
  return parts.filter(Boolean).map((part) => part.replace(/\.$/, "")).join("; ");
}

function rows(schema, resolve, depth = 0) {
  const object = resolve(schema);
  const isRequired = ([name]) => object.required?.includes(name) ?? false;
  const fields = Object.entries(object.properties ?? {});
  fields.sort((a, b) => isRequired(b) - isRequired(a)); // stable: otherwise as written
  return fields.flatMap(([name, field]) => {
    const row = element("tr");
    const cell = element("td", name, `nested-${depth}`);
    if (!isRequired([name])) cell.append(" ", element("span", "optional", "optional"));
    row.append(cell, element("td", typeName(field, resolve), "type"), prose("td", meaning(field)));
    const inner = alternatives(field).flatMap((one) => (one.type === "array" ? alternatives(one.items) : [one]));
    const objects = inner.filter((one) => one.$ref);
    return [row, ...(depth < 2 ? objects.flatMap((one) => rows(one, resolve, depth + 1)) : [])];
  });
}

function table(heads, body) {
  const head = element("tr");
  head.append(...heads.map((text) => element("th", text)));
  const node = element("table");
  node.createTHead().append(head);
  node.createTBody().append(...body);
  const frame = element("div", undefined, "scroll");
  frame.tabIndex = 0;
  frame.append(node);
  return frame;
}

/* One endpoint */

function statuses(operation) {
  return Object.entries(operation.responses).map(([status, response]) => {
    const row = element("tr");
    const type = Object.keys(response.content ?? {}).join(", ");
    const description = status === "200" ? "The answer." : response.description;
    row.append(element("td", status), element("td", type, "type"), prose("td", description));
    return row;
  });
}

function tryBox(method, path, example) {
  const form = element("form", undefined, "try");
  const input = element("textarea");
  const button = element("button", "Send", "primary");
  const output = element("output");
  const head = element("p", undefined, "quiet");
  const body = element("pre");
  input.value = JSON.stringify(example, null, 2);
  input.rows = input.value.split("\n").length + 1;
  input.spellcheck = false;
  input.setAttribute("aria-label", `Body of ${method} ${path}`);
  body.tabIndex = 0;
  const actions = element("div", undefined, "actions");
  actions.append(button);
  form.append(...(example ? [input] : []), actions, output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const start = performance.now();
    const options = { method };
    if (example) Object.assign(options, { body: input.value, headers: { "Content-Type": "application/json" } });
    try {
      const response = await fetch(path.slice(1), options);
      const text = await response.text();
      head.textContent = `${response.status}, ${(performance.now() - start).toFixed(0)} ms`;
      body.textContent = text.startsWith("{") ? JSON.stringify(JSON.parse(text), null, 2) : text;
      output.replaceChildren(head, body);
    } catch {
      head.textContent = "The server cannot be reached.";
      output.replaceChildren(head);
    }
  });
  return form;
}

function endpoint(path, method, operation, resolve) {
  const node = element("section", undefined, "panel endpoint");
  node.id = operation.operationId;
  const title = element("h2");
  title.append(element("span", method.toUpperCase(), "method"), path);
  node.append(title, prose("p", operation.summary, "summary"), prose("p", operation.description));
  const request = operation.requestBody?.content["application/json"];
  if (request) {
    node.append(element("h3", "Request"), table(["Field", "Type", "Meaning"], rows(request.schema, resolve)));
  }
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  if (answer) {
    node.append(element("h3", "Answer"), table(["Field", "Type", "Meaning"], rows(answer, resolve)));
  }
  node.append(element("h3", "Statuses"), table(["Status", "Content", "Meaning"], statuses(operation)));
  node.append(element("h3", "Try it"), tryBox(method.toUpperCase(), path, request?.example));
  return node;
}

async function show() {
  const response = await fetch("openapi.json");
  const api = await response.json();
  const resolve = resolver(api);
  $("version").textContent = api.info.version === "0" ? "" : api.info.version;
  $("intro").replaceWith(prose("p", api.info.description, "intro"));
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const link = element("a", `${method.toUpperCase()} ${path}`);
      link.href = `#${operation.operationId}`;
      $("contents").append(link);
      $("endpoints").append(endpoint(path, method, operation, resolve));
    }
  }
}

show().catch(() => {
  $("error").textContent = "The description, openapi.json, cannot be loaded.";
  $("error").hidden = false;
});
