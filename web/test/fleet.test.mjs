// The fleet page as a person uses it: sorting, filtering, keys, links, back; and that a VM's name is never markup.
import assert from "node:assert/strict";
import { test } from "node:test";
import { cycle, mockOnly, names, openFleet, setUp, someVm, steer, until, withPage } from "./harness.mjs";

const at = setUp({ vms: 200 });
const EVIL = "<img src=x onerror=alert(1)>";

test("sorting is a URL; back and forward go through it", () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    await page.locator("thead").getByRole("link", { name: "VM" }).click();
    await page.waitForURL(/sort=name&dir=asc/);
    const up = await names(page);
    assert.deepEqual(up, [...up].sort((a, b) => (a.toLowerCase() < b.toLowerCase() ? -1 : 1)));
    await page.locator("thead").getByRole("link", { name: "VM" }).click();
    await page.waitForURL(/dir=desc/);
    assert.equal(await page.locator('th[aria-sort="descending"]').count(), 1);
    await page.goBack();
    await page.waitForURL(/dir=asc/);
    assert.deepEqual(await names(page), up);
    await page.goForward();
    await page.waitForURL(/dir=desc/);
    await page.reload();
    await page.locator('th.name[aria-sort="descending"]').waitFor();
  }));

test("every column that sorts, sorts without an error", () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    const titles = await page.locator("thead a").allTextContents();
    assert.ok(titles.length >= 13);
    for (let i = 0; i < titles.length; i += 1) {
      await page.locator("thead a").nth(i).click();
      await page.locator("thead th:has(a)").nth(i).and(page.locator("[aria-sort]")).waitFor();
    }
  }));

test("a deep link shows its filter, sort and host", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page, "?q=web&host=kvm-01&sort=used&dir=asc");
    assert.equal(await page.getByRole("searchbox").inputValue(), "web");
    assert.equal(await page.getByLabel("Host", { exact: true }).inputValue(), "kvm-01");
    const shown = await names(page);
    assert.ok(shown.length > 0 && shown.every((name) => name.startsWith("web-")));
    assert.equal(await page.locator("td.host").evaluateAll((cells) => cells.every((cell) => cell.textContent === "kvm-01")), true);
    await page.getByRole("link", { name: "Clear" }).click();
    await page.locator(".shown", { hasText: /^200 VMs$/ }).waitFor();
  }));

test("typing filters, and the address follows", () =>
  withPage(at, {}, async (page) => {
    const name = (await someVm(at, 0)).names[0];
    await openFleet(at, page);
    await page.keyboard.press("/");
    await page.keyboard.type(name);
    await page.waitForURL((url) => url.searchParams.get("q") === name);
    await until(page, "only that one", async () => (await names(page)).every((shown) => shown.includes(name)));
    await page.goBack();
    await page.waitForURL((url) => !url.searchParams.has("q"));
    await until(page, "an empty field", async () => (await page.getByRole("searchbox").inputValue()) === "");
  }));

test("a filter that fits nothing says so and leads back", () =>
  withPage(at, {}, async (page) => {
    await page.goto(new URL("./?q=no-such-vm-anywhere", at.url).href);
    await page.getByRole("link", { name: "Show all" }).click();
    await page.locator(".vms tbody th.name a").first().waitFor();
  }));

test("rows keep their place while values move, until the person asks", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page, "?sort=rx&dir=desc");
    const first = await names(page);
    // The first is stuck and stays; the next one, which receives most, stops.
    const busiest = at.mock.world.vms.find((vm) => vm.names[0] === first[1]);
    busiest.state = 3;
    try {
      await cycle(at, [page]);
      await page.getByRole("button", { name: /Sort again/ }).waitFor();
      assert.deepEqual(await names(page), first);
      await page.keyboard.press("r");
      await page.locator(".order-hint", { hasText: "In order" }).waitFor();
      assert.notEqual((await names(page))[1], first[1]);
    } finally {
      busiest.state = 1;
    }
  }));

test("a VM that comes is there with the next cycle, one that goes is gone", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    await steer(at, "add");
    await steer(at, "push");
    await page.locator(".shown", { hasText: /^201 VMs$/ }).waitFor();
    await steer(at, `remove?uuid=${at.mock.world.vms.at(-1).uuid}`);
    await steer(at, "push");
    await page.locator(".shown", { hasText: /^200 VMs$/ }).waitFor();
  }));

test("stuck VMs and silent hosts stand out in words", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    const first = page.locator(".vms tbody tr").first();
    assert.match(await first.textContent(), /stuck since \d\d:\d\d:\d\d/);
    assert.match(await page.locator(".hosts tbody tr").first().textContent(), /kvm-04.*silent since/);
    await page.locator(".summary").getByRole("link", { name: /▲/ }).click();
    await page.waitForURL(/state=stuck/);
    assert.deepEqual(await names(page), ["cache-01"]);
  }));

test("the arrow keys reach every row, Enter opens one", () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page, "?sort=name&dir=asc");
    const last = Number(await page.locator(".vms table").getAttribute("aria-rowcount"));
    await page.locator(".vms tbody th.name a").first().focus();
    await page.keyboard.press("ArrowDown");
    await page.locator(".vms tr[aria-rowindex='3'] a:focus").waitFor();
    await page.keyboard.press("End");
    await page.locator(`.vms tr[aria-rowindex='${last}'] a:focus`).waitFor();
    await page.keyboard.press("PageUp");
    const name = await page.locator(".vms a:focus").textContent();
    await page.keyboard.press("Enter");
    await page.waitForURL(/\/vm\//);
    await page.getByRole("heading", { level: 1, name }).waitFor();
    await page.goBack();
    await page.locator(".vms").waitFor();
  }));

test("scrolling draws the rows that come into sight, and few more", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page, "?sort=name&dir=asc");
    await page.locator(".vms").evaluate((box) => (box.scrollTop = box.scrollHeight));
    await page.locator(".vms tr[aria-rowindex='201']").waitFor();
    const drawn = await page.locator(".vms tbody tr:not(.space)").count();
    assert.ok(drawn < 70, `${drawn} rows are in the document`);
  }));

test("top VMs link to their pages, and their titles sort", () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    await page.locator(".talkers h3 a", { hasText: "Memory growth" }).click();
    await page.waitForURL(/sort=growth/);
    const top = page.locator(".talker li a").first();
    const name = await top.textContent();
    await top.click();
    await page.getByRole("heading", { level: 1, name }).waitFor();
  }));

test("help opens by ?, closes by Escape, and can switch single keys off", () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "Keys and mouse" }).waitFor();
    await page.getByLabel(/single-key shortcuts/).uncheck();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await page.keyboard.press("c");
    await page.keyboard.press("?");
    assert.equal(await page.getByRole("dialog").count(), 0);
    assert.doesNotMatch(page.url(), /collector/);
  }));

test("a VM's name is never markup", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page, "?q=onerror");
    assert.deepEqual(await names(page), [EVIL]);
    await page.locator(".vms tbody th.name a").first().click();
    await page.getByRole("heading", { level: 1, name: EVIL }).waitFor();
    await page.locator(".chart .u-over").first().waitFor();
    assert.match(await page.title(), /<img/);
    assert.equal(await page.locator("img").count(), 0);
  }));
