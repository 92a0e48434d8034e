// Serves the demo page on this machine: node serve.mjs BUNDLE [PORT]. A real site needs no more than files and two headers.
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

const here = dirname(fileURLToPath(import.meta.url));
const [bundle, port = "8080", tests] = process.argv.slice(2);
if (!bundle) {
  console.error("say which bundle: node serve.mjs BUNDLE [PORT]");
  process.exit(2);
}
const packaged = (name) => {
  try {
    return dirname(createRequire(import.meta.url).resolve(name));
  } catch {
    return ""; // not installed; only some pages need it
  }
};
// What a path begins with, and the folder that it means.
const folders = {
  titans: join(here, "..", "dist"),
  ort: packaged("onnxruntime-web/wasm"),
  jinja: packaged("@huggingface/jinja"),
  tokenizers: packaged("@huggingface/tokenizers"),
  bundle,
  ...(tests ? { tests } : {}),
};

function fileOf(url) {
  const path = normalize(decodeURIComponent(new URL(url, "http://local").pathname)).replace(/^[/\\]+/, "");
  const [first, ...rest] = path.split(sep);
  if (folders[first] && rest.length) return join(folders[first], ...rest);
  return ["", "index.html", "page.js"].includes(path) ? join(here, path || "index.html") : undefined;
}

const server = createServer(async (request, response) => {
  try {
    const file = fileOf(request.url);
    const { size } = await stat(file ?? "");
    response.writeHead(200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Content-Length": size,
      // Threads of wasm share memory, which browsers allow pages with these alone.
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    });
    createReadStream(file).pipe(response);
  } catch {
    response.writeHead(404).end("not found");
  }
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
