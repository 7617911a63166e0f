// Prints what each file of dist/ costs on the wire and fails beyond the budget.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** All of the front end, gzip -9: what the issue allows. */
const BUDGET_KIB = 120;

const dist = fileURLToPath(new URL("../dist", import.meta.url));
const rows = readdirSync(dist, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    const bytes = readFileSync(path);
    return { name: path.slice(dist.length + 1), raw: bytes.length, gzip: gzipSync(bytes, { level: 9 }).length };
  })
  .sort((a, b) => b.gzip - a.gzip);

const kib = (bytes) => (bytes / 1024).toFixed(1).padStart(7);
console.log("    raw    gzip  KiB");
for (const row of rows) console.log(`${kib(row.raw)} ${kib(row.gzip)}  ${row.name}`);
const total = rows.reduce((sum, row) => sum + row.gzip, 0);
console.log(`${kib(rows.reduce((sum, row) => sum + row.raw, 0))} ${kib(total)}  in all; at most ${BUDGET_KIB}.0`);
if (total > BUDGET_KIB * 1024) {
  console.error(`the front end is ${((total / 1024) - BUDGET_KIB).toFixed(1)} KiB over its budget`);
  process.exit(1);
}
