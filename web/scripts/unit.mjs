// Runs every src/**/*.test.ts on node's own runner. They are bundled first: node 20 reads no TypeScript.
// The tests' own time zone is set so that what they expect of clock times holds on every machine.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const out = join(root, "target/unit");
const tests = readdirSync(join(root, "src"), { recursive: true })
  .filter((file) => file.endsWith(".test.ts"))
  .map((file) => join("src", file));

rmSync(out, { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: tests,
  bundle: true,
  platform: "node",
  format: "esm",
  outdir: out,
  outExtension: { ".js": ".mjs" },
  outbase: "src",
  sourcemap: "inline",
  logLevel: "warning",
});
const files = tests.map((file) => join(out, file.slice(4).replace(/\.ts$/, ".mjs")));
const env = { ...process.env, TZ: "Europe/Berlin" };
const run = spawnSync(process.execPath, ["--test", "--enable-source-maps", ...files], { stdio: "inherit", env });
process.exit(run.status ?? 1);
