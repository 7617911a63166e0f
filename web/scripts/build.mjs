// Makes dist/: index.html, and below assets/ the scripts and the style sheet, named by their content so that a browser may keep
// them for ever. `--watch` is not offered: a build takes less time than a reload.
import { build } from "esbuild";
import { readFileSync, writeFileSync, rmSync, mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const out = join(root, "dist");

const common = {
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome109", "firefox115", "safari16"],
  entryNames: "[name]-[hash]",
  outdir: join(out, "assets"),
  jsx: "automatic",
  jsxImportSource: "preact",
  metafile: true,
  legalComments: "none",
  logLevel: "warning",
  absWorkingDir: root,
};

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

// The worker first: the page has to know its name.
const worker = await build({ ...common, format: "iife", entryPoints: ["src/live/worker.ts"] });
const page = await build({
  ...common,
  entryPoints: ["src/main.tsx"],
  define: { WORKER_FILE: JSON.stringify(`assets/${outputOf(worker, ".js")}`) },
});

// The notices that the licences of what is bundled ask to be kept with it.
const notices = ["preact", "uplot"].map((name) => {
  const { version } = JSON.parse(readFileSync(join(root, "node_modules", name, "package.json"), "utf8"));
  return `${name} ${version}\n\n${readFileSync(join(root, "node_modules", name, "LICENSE"), "utf8").trim()}\n`;
});
writeFileSync(join(out, "LICENSES.txt"), notices.join("\n----\n\n"));

const html = readFileSync(join(root, "src/index.html"), "utf8")
  .replace("{{css}}", `assets/${outputOf(page, ".css")}`)
  .replace("{{js}}", `assets/${outputOf(page, ".js")}`);
writeFileSync(join(out, "index.html"), html);

function outputOf(result, ending) {
  const found = Object.keys(result.metafile.outputs).filter((file) => file.endsWith(ending));
  if (found.length !== 1) throw new Error(`expected one ${ending} file, got ${found.join(", ")}`);
  return basename(found[0]);
}
