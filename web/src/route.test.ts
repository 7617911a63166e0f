// Addresses to routes and back.
import { test } from "node:test";
import assert from "node:assert/strict";
import { link, parse, vmLink } from "./route.ts";

test("the three pages, and what is none", () => {
  const check = (path: string, page: string, uuid = "") => {
    const route = parse(path, "");
    assert.deepEqual([route.page, route.uuid], [page, uuid], path);
  };
  check("", "fleet");
  check("collector", "collector");
  check("vm/abc", "vm", "abc");
  check("vm/a%2Fb", "vm", "a/b");
  check("vm/a%", "unknown");
  check("vm", "unknown");
  check("vm/a/b", "unknown");
  check("other", "unknown");
});

test("links leave out what is empty and escape the rest", () => {
  assert.equal(link("", { q: "", host: "" }), "./");
  assert.equal(link("", { q: "a&b", host: "x" }), "./?q=a%26b&host=x");
  assert.equal(vmLink("a/b"), "vm/a%2Fb");
  assert.equal(vmLink("a", "range=6h"), "vm/a?range=6h");
});
