// Lists what /openapi.json describes, and sends requests by hand. Everything it needs comes from this server.

const list = document.getElementById("list");
const filter = document.getElementById("filter");
let description;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function resolved(schema, depth = 0) {
  if (!schema || depth > 6) return {};
  if (schema.$ref) {
    const found = schema.$ref.split("/").slice(1).reduce((at, key) => at?.[key], description);
    return resolved(found, depth + 1);
  }
  return schema;
}

function example(schema, depth = 0) {
  const shape = resolved(schema, depth);
  if (depth > 5) return null;
  if (shape.default !== undefined) return shape.default;
  if (shape.examples?.length) return shape.examples[0];
  if (shape.enum) return shape.enum[0];
  const variant = shape.anyOf?.[0] ?? shape.oneOf?.[0] ?? shape.allOf?.[0];
  if (variant) return example(variant, depth + 1);
  switch (shape.type) {
    case "object":
      return Object.fromEntries(Object.entries(shape.properties ?? {}).map(([k, v]) => [k, example(v, depth + 1)]));
    case "array": return shape.items ? [example(shape.items, depth + 1)] : [];
    case "integer": case "number": return 0;
    case "boolean": return false;
    case "string": return "";
    default: return null;
  }
}

function form(path, method, operation) {
  const inputs = (operation.parameters ?? []).map((parameter) => {
    const shape = resolved(parameter.schema);
    const input = element("input", { placeholder: shape.type ?? "", value: shape.default ?? "" });
    const name = `${parameter.name}${parameter.required ? " *" : ""} (${parameter.in})`;
    return { parameter, input, row: element("label", {}, name, input) };
  });
  const content = operation.requestBody?.content ?? {};
  const json = content["application/json"];
  const upload = content["multipart/form-data"] ?? content["application/x-www-form-urlencoded"];
  const body = json ? element("textarea", { value: JSON.stringify(example(json.schema), null, 2), spellcheck: false }) : null;
  const fields = Object.entries(resolved(upload?.schema).properties ?? {}).map(([name, schema]) => {
    const shape = resolved(schema);
    const isFile = shape.format === "binary" || shape.contentMediaType !== undefined;
    const input = element("input", isFile ? { type: "file" } : {});
    return { name, input, isFile, row: element("label", {}, name, input) };
  });
  const answer = element("div");
  const send = element("button", { type: "button" }, "Send");
  send.addEventListener("click", async () => {
    answer.replaceChildren("...");
    let target = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { parameter, input } of inputs) {
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value === "" && !parameter.required) continue;
      else if (parameter.in === "query") query.append(parameter.name, input.value);
      else if (parameter.in === "header") headers[parameter.name] = input.value;
    }
    let payload;
    if (body) {
      headers["Content-Type"] = "application/json";
      payload = body.value;
    } else if (upload) {
      payload = new FormData();
      for (const { name, input, isFile } of fields) {
        if (isFile) for (const file of input.files) payload.append(name, file);
        else if (input.value !== "") payload.append(name, input.value);
      }
    }
    const began = performance.now();
    try {
      const answered = await fetch(target + (query.size ? `?${query}` : ""), { method: method.toUpperCase(), headers, body: payload });
      const text = await answered.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it is */ }
      const took = Math.round(performance.now() - began);
      answer.replaceChildren(
        element("p", { className: answered.ok ? "" : "bad" }, `${answered.status} ${answered.statusText}, ${took} ms, ${answered.headers.get("content-type") ?? "no content type"}`),
        element("pre", {}, shown.slice(0, 200000)),
      );
    } catch (error) {
      answer.replaceChildren(element("p", { className: "bad" }, String(error)));
    }
  });
  return element("div", {},
    operation.description ? element("p", {}, operation.description) : null,
    ...inputs.map(({ row }) => row), body, ...fields.map(({ row }) => row), send, answer);
}

function entry(path, method, operation) {
  const details = element("details", {},
    element("summary", {},
      element("span", { className: `method ${method}` }, method.toUpperCase()),
      element("code", {}, path), " ",
      element("span", { className: "note" }, operation.summary ?? "")));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(form(path, method, operation));
  });
  return details;
}

function socket(one) {
  return element("details", {},
    element("summary", {},
      element("span", { className: "method" }, "WS"), element("code", {}, one.path), " ",
      element("span", { className: "note" }, one.name ?? "")),
    element("div", {}, element("p", {}, one.description || "A websocket.")));
}

function show() {
  const wanted = filter.value.trim().toLowerCase();
  const groups = new Map();
  const add = (tag, text, node) => {
    if (wanted && !text.toLowerCase().includes(wanted)) return;
    if (!groups.has(tag)) groups.set(tag, []);
    groups.get(tag).push(node());
  };
  for (const [path, operations] of Object.entries(description.paths ?? {})) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      add(tag, `${method} ${path} ${operation.summary ?? ""} ${operation.tags ?? ""}`, () => entry(path, method, operation));
    }
  }
  for (const one of description["x-websockets"] ?? []) add("websockets", `${one.path} ${one.name}`, () => socket(one));
  const sections = [...groups].sort(([a], [b]) => a.localeCompare(b))
    .map(([tag, nodes]) => element("section", {}, element("h2", {}, tag), ...nodes));
  list.replaceChildren(...(sections.length ? sections : ["Nothing matches."]));
}

try {
  const answered = await fetch("/openapi.json");
  if (!answered.ok) throw new Error(`/openapi.json: ${answered.status}`);
  description = await answered.json();
  filter.addEventListener("input", show);
  show();
} catch (error) {
  list.replaceChildren(element("p", { className: "bad" }, String(error)));
}
