// Each page as it is seen: accessible in light and dark, no wider than the window from 360 to 3840 px, and a picture of it in
// target/shots. Pages that have nothing to show say what to do next.
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { checkAccessible, checkWidth, mockOnly, openFleet, openVm, setUp, SHOTS, someVm, steer, withPage } from "./harness.mjs";

const at = setUp({ vms: 120 });
const GONE = /ERR_|Failed to load resource/;

/** Looks at a page that is open: axe, width, picture. */
async function look(page, name) {
  await checkAccessible(page, name);
  await checkWidth(page, name);
  await page.screenshot({ path: join(SHOTS, `${name}.png`) });
}

const PAGES = {
  fleet: (page) => openFleet(at, page),
  vm: async (page) => {
    await openVm(at, page, (await someVm(at, 1)).uuid);
    await page.locator(".note", { hasText: "loading" }).waitFor({ state: "detached" });
  },
  collector: async (page) => {
    await page.goto(new URL("collector", at.url).href);
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
  },
};

for (const scheme of ["light", "dark"]) {
  for (const [name, open] of Object.entries(PAGES)) {
    test(`${name}, ${scheme}`, () =>
      withPage(at, { scheme, height: name === "vm" ? 1400 : 900 }, async (page) => {
        await open(page);
        await look(page, `${name}-${scheme}`);
      }));
  }

  test(`help, ${scheme}`, () =>
    withPage(at, { scheme }, async (page) => {
      await openFleet(at, page);
      await page.getByRole("button", { name: "Help and keyboard shortcuts" }).click();
      await page.getByRole("dialog").waitFor();
      await look(page, `help-${scheme}`);
    }));

  test(`login, ${scheme}`, mockOnly, () =>
    withPage(at, { scheme, expected: /401/ }, async (page) => {
      at.mock.setToken("right");
      try {
        await page.goto(new URL("./", at.url).href);
        await page.getByLabel("Token").fill("wrong");
        await page.getByRole("button", { name: "Log in" }).click();
        await page.getByText("this token is not known").waitFor();
        await look(page, `login-${scheme}`);
        await page.getByLabel("Token").fill("right");
        await page.keyboard.press("Enter");
        await page.locator(".vms tbody th.name a").first().waitFor();
        await page.getByRole("button", { name: "Log out" }).click();
        await page.getByRole("heading", { name: "Log in" }).waitFor();
      } finally {
        at.mock.setToken(null);
      }
    }));

  for (const [scenario, heading] of [
    ["empty", "No hypervisor can be read"],
    ["fresh", "Nothing has been collected yet"],
    ["no-permission", "No hypervisor can be read"],
    ["no-vms", /No VM is running on/],
  ]) {
    test(`${scenario}, ${scheme}`, mockOnly, () =>
      withPage(at, { scheme }, async (page) => {
        await steer(at, `scenario?name=${scenario}`);
        await steer(at, "push");
        try {
          await page.goto(new URL("./", at.url).href);
          await page.getByRole("heading", { level: 1, name: heading }).waitFor();
          assert.match(await page.locator(".empty pre").first().textContent(), /kvmetry|virsh/);
          await look(page, `${scenario}-${scheme}`);
        } finally {
          await steer(at, "scenario?name=normal");
          await steer(at, "push");
        }
      }));
  }

  test(`unknown VM, ${scheme}`, () =>
    withPage(at, { scheme, expected: /404/ }, async (page) => {
      await page.goto(new URL("vm/00000000-0000-4000-8000-000000000000", at.url).href);
      await page.getByRole("heading", { level: 1, name: "This VM is not known" }).waitFor();
      await look(page, `unknown-vm-${scheme}`);
    }));

  test(`server without new values, ${scheme}`, mockOnly, () =>
    withPage(at, { scheme }, async (page) => {
      await openFleet(at, page);
      await steer(at, "trouble?on=1");
      try {
        await page.locator(".troubled").waitFor();
        await look(page, `troubled-${scheme}`);
      } finally {
        await steer(at, "trouble?on=0");
      }
    }));

  test(`server gone, ${scheme}`, mockOnly, () =>
    withPage(at, { scheme, expected: GONE }, async (page) => {
      await openFleet(at, page);
      await steer(at, "down?on=1");
      try {
        await page.getByText(/Not connected since/).waitFor();
        await look(page, `gone-${scheme}`);
      } finally {
        await steer(at, "down?on=0");
      }
    }));
}

for (const [width, height] of [[360, 740], [3840, 2160]]) {
  for (const [name, open] of Object.entries(PAGES)) {
    test(`${name} at ${width} px`, () =>
      withPage(at, { width, height, scheme: "dark" }, async (page) => {
        await open(page);
        await look(page, `${name}-${width}`);
      }));
  }
}

test("a token that is revoked while a page is open leads to the login form, and back to the same view", mockOnly, () =>
  withPage(at, { expected: /401|ERR_/ }, async (page) => {
    await openFleet(at, page, "?q=web&sort=name&dir=asc");
    at.mock.setToken("new");
    try {
      await page.getByLabel("Token").fill("new");
      await page.keyboard.press("Enter");
      await page.locator(".vms tbody th.name a", { hasText: "web-01" }).waitFor();
      assert.match(page.url(), /q=web/);
    } finally {
      at.mock.setToken(null);
    }
  }));

test("behind a path prefix", mockOnly, async (t) => {
  const { serve } = await import("../mock/server.mjs");
  const prefixed = await serve({ pace: 0, vms: 5, base: "/kvm/" });
  t.after(() => prefixed.close());
  await withPage({ ...at, url: prefixed.url, mock: prefixed }, {}, async (page) => {
    await openFleet({ url: prefixed.url }, page);
    await page.locator(".vms tbody th.name a").first().click();
    await page.waitForURL(/\/kvm\/vm\/[0-9a-f-]{36}$/);
    await page.locator(".chart .u-over").first().waitFor();
    await page.reload();
    await page.locator(".chart .u-over").first().waitFor();
    await page.getByRole("link", { name: "Collector" }).click();
    await page.waitForURL(/\/kvm\/collector$/);
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
  });
});
