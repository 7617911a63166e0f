// What the real program's pages say where there is nothing to show, where a token is needed, behind a proxy, over TLS.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, renameSync, symlinkSync } from "node:fs";
import { createServer, request } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { connect } from "node:tls";
import { checkAccessible, checkWidth, openVm, SHOTS } from "../harness.mjs";
import { eventually, feed, folder, KVMETRY, NAME, setUpReal, start, stop, visit } from "./real.mjs";

const at = setUpReal();
const NOBODY = 65534;
const AS_NOBODY = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
// Root that is bound by permissions: another user might not reach the program and its pages, in a home.
const WITHIN_PERMISSIONS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
const NO_VM = "00000000-0000-4000-8000-000000000000";

/** Opens each of the three pages and checks that these words are in sight. */
function pagesSay(server, name, words) {
  return visit({ ...at, url: server.url }, { expected: /404/ }, async (page) => {
    for (const [path, [heading, ...texts]] of Object.entries(words)) {
      await page.goto(new URL(path, server.url).href);
      await page.getByRole("heading", { name: heading }).first().waitFor();
      for (const text of texts) await page.getByText(text).first().waitFor();
      const what = `${name}-${path.split("/")[0] || "fleet"}`;
      await checkAccessible(page, what);
      await checkWidth(page, what);
      await page.screenshot({ path: join(SHOTS, `real-${what}.png`) });
    }
  });
}

const NOTHING_YET = (origin) => ({
  "": [
    "Nothing has been collected yet",
    "kvmetry check",
    `kvmetry run --influxdb ${origin}`,
    "See how the collector fares",
  ],
  [`vm/${NO_VM}`]: [
    "This VM is not known",
    'kvmetry query "SELECT DISTINCT name, uuid FROM vm_totals"',
    "See the VMs that are",
  ],
  collector: ["Hypervisors", /None has been read yet: kvmetry check says why/, "kvmetry run --uri qemu:///system"],
});

test("an empty store", async () => {
  const server = await start(at, ["serve"]);
  await pagesSay(server, "empty", NOTHING_YET(new URL(server.url).origin));
});

/** Why `kvmetry run` of an unreadable libvirt reads nothing, by its log. */
async function unreadable(args, options, reason) {
  const server = await start(at, ["run", "--interval", "2s", ...args], options);
  await eventually("the reason in the log", () => reason.test(server.log));
  return { server, reason };
}

/** Two ways in which there is no libvirt for us. */
const UNREADABLE = {
  "no-libvirt": () =>
    unreadable(["--uri", `qemu+unix:///system?socket=${join(folder(at), "no-such-sock")}`], {}, /no such socket/),
  "no-permission": () => {
    // What a socket of mode 0660 is for who is not in its group: some systems' own is open to all.
    const closed = join(folder(at), "closed");
    mkdirSync(closed, { mode: 0o700 });
    symlinkSync("/run/libvirt/libvirt-sock-ro", join(closed, "libvirt-sock-ro"));
    execFileSync("chown", [String(NOBODY), closed]);
    return unreadable(
      ["--uri", `qemu+unix:///system?socket=${join(closed, "libvirt-sock-ro")}`],
      { prefix: WITHIN_PERMISSIONS },
      /permission/i,
    );
  },
};

for (const [name, begin] of Object.entries(UNREADABLE)) {
  test(name, async () => {
    const { server, reason } = await begin();
    const words = NOTHING_YET(new URL(server.url).origin);
    words[""] = ["No hypervisor can be read", ...words[""].slice(1), reason, /Once that is mended this page fills by itself/];
    words.collector = ["Hypervisors", "not connected", reason];
    await pagesSay(server, name, words);
  });
}

/** A libvirtd of nobody's own, on which nothing runs, whatever else this machine does. Gives its socket. */
async function ownLibvirt() {
  const dir = folder(at);
  execFileSync("chown", [String(NOBODY), dir]);
  const [command, ...args] = [...AS_NOBODY, "libvirtd"];
  const daemon = spawn(command, args, {
    stdio: "ignore",
    env: {
      PATH: process.env.PATH,
      HOME: dir,
      XDG_RUNTIME_DIR: dir,
      XDG_CONFIG_HOME: join(dir, "config"),
      XDG_CACHE_HOME: join(dir, "cache"),
      XDG_DATA_HOME: join(dir, "data"),
    },
  });
  at.undo.push(() => stop(daemon));
  const socket = join(dir, "libvirt", "libvirt-sock");
  await eventually("its socket", () => existsSync(socket));
  return socket;
}

test("a libvirt without VMs", async () => {
  const socket = await ownLibvirt();
  const server = await start(at, ["run", "--interval", "2s", "--uri", `qemu+unix:///session?socket=${socket}`]);
  await eventually("a cycle", async () => (await (await fetch(new URL("api/fleet", server.url))).json()).at !== null);
  await pagesSay(server, "no-vms", {
    "": [/^No VM is running on /, "virsh start NAME", /within two cycles \(4 s\)/, "kvmetry check"],
    [`vm/${NO_VM}`]: ["This VM is not known", "See the VMs that are"],
    collector: ["Hypervisors", "Cycle"],
  });
});

test("with a token: the login, refused with words, and out again", async () => {
  const dir = folder(at);
  const token = (scope) =>
    execFileSync(KVMETRY, ["token", "--scope", scope, "--data-dir", join(dir, "data")], { encoding: "utf8" }).trim();
  const [reader, writer] = [token("read"), token("write")];
  const server = await start(at, ["serve"], { dir });
  await visit({ ...at, url: server.url }, { expected: /401|403/ }, async (page) => {
    const alert = page.getByRole("alert");
    const logIn = async (text) => {
      await page.getByLabel("Token").fill(text);
      const answered = page.waitForResponse(
        (response) => response.url().endsWith("/api/session") && response.request().method() === "POST",
      );
      await page.getByRole("button", { name: "Log in" }).click();
      return (await answered).status();
    };
    for (const path of ["", "collector", `vm/${NO_VM}`]) {
      await page.goto(new URL(path, server.url).href);
      await page.getByRole("heading", { name: "Log in" }).waitFor();
    }
    await page.goto(new URL("collector", server.url).href);
    for (const refused of ["apiv3_wrong", writer]) {
      assert.equal(await logIn(refused), 401);
      await eventually("a reason", async () =>
        /no such token may read here: kvmetry token --scope read makes one/.test(await alert.textContent()),
      );
    }
    await checkAccessible(page, "login");
    await page.screenshot({ path: join(SHOTS, "real-login.png") });
    assert.equal(await logIn(reader), 204);
    // To the page that was asked for.
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
    await page.reload();
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
    await page.getByRole("button", { name: "Log out" }).click();
    await page.getByRole("heading", { name: "Log in" }).waitFor();
    assert.equal(await page.evaluate(async () => (await fetch("api/fleet")).status), 401);
  });
});

/** A reverse proxy at PREFIX, which it takes away or passes on; what is elsewhere is not its own. */
async function proxy(server, prefix, strips) {
  const { hostname, port } = new URL(server.url);
  const told = { streams: 0, elsewhere: [] };
  const way = createServer((asked, answer) => {
    if (!asked.url.startsWith(prefix)) {
      told.elsewhere.push(asked.url);
      answer.writeHead(404).end();
      return;
    }
    const path = strips ? asked.url.slice(prefix.length - 1) : asked.url;
    const behind = request({ hostname, port, path, method: asked.method, headers: asked.headers }, (response) => {
      if (response.headers["content-type"] === "text/event-stream") told.streams += 1;
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    behind.on("error", () => answer.destroy());
    answer.on("close", () => behind.destroy());
    asked.pipe(behind);
  });
  await new Promise((resolve) => way.listen(0, "127.0.0.1", resolve));
  at.undo.push(
    () =>
      new Promise((resolve) => {
        way.close(resolve);
        way.closeAllConnections();
      }),
  );
  return { url: `http://${NAME}:${way.address().port}${prefix}`, told };
}

for (const strips of [false, true]) {
  test(`behind a proxy whose prefix is ${strips ? "taken away" : "passed on"}`, async () => {
    const prefix = "/some/prefix/";
    const config = `[http]\nbase_path = "${prefix.slice(0, -1)}"\nallowed_hosts = ["${NAME}"]\n`;
    const server = await start(at, ["serve"], { config });
    const from = new Date(Date.now() - 60_000).toISOString();
    await feed(at, server, ["--vms", 5, "--days", 0.02, "--interval", "1s", "--start", from]);
    const { url, told } = await proxy(server, prefix, strips);
    await visit({ ...at, url }, {}, async (page) => {
      await page.goto(url);
      await page.locator(".vms tbody th.name a").first().waitFor();
      // Pushed, not asked for: the time moves on, more than once.
      const time = () => page.locator(".link time").textContent();
      for (let i = 0; i < 2; i += 1) {
        const before = await time();
        await eventually("the next cycle", async () => (await time()) !== before);
      }
      await page.locator(".vms tbody th.name a").first().click();
      await page.waitForURL(/\/some\/prefix\/vm\/[0-9a-f-]{36}$/);
      await page.locator(".chart .u-over").first().waitFor();
      await page.reload();
      await page.locator(".chart .u-over").first().waitFor();
      await page.getByRole("link", { name: "Collector" }).click();
      await page.waitForURL(/\/some\/prefix\/collector$/);
      await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
      await page.goBack();
      await page.locator(".chart .u-over").first().waitFor();
      await page.screenshot({ path: join(SHOTS, `real-proxy-${strips ? "strips" : "passes"}.png`) });
    });
    assert.ok(told.streams > 0, "the stream went through the proxy");
    assert.deepEqual(told.elsewhere, [], "nothing was asked for outside of the prefix");
  });
}

test("over TLS, with a certificate that is replaced while it runs", async () => {
  const dir = folder(at);
  const [cert, key] = ["cert.pem", "key.pem"].map((name) => join(dir, name));
  const make = (name) => {
    const [newCert, newKey] = [cert, key].map((file) => `${file}.new`);
    execFileSync(
      "openssl",
      [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        `/CN=${name}`,
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        newKey,
        "-out",
        newCert,
      ],
      { stdio: "ignore" },
    );
    // As renewals do: each file is whole at any moment.
    renameSync(newKey, key);
    renameSync(newCert, cert);
  };
  make("first.test");
  const server = await start(at, ["serve"], { dir, config: `[http]\ntls_cert = "${cert}"\ntls_key = "${key}"\n` });
  const fingerprint = () =>
    new Promise((resolve, reject) => {
      const { hostname, port } = new URL(server.url);
      const socket = connect({ host: hostname, port, rejectUnauthorized: false }, () => {
        resolve(socket.getPeerCertificate().fingerprint256);
        socket.destroy();
      });
      socket.on("error", reject);
    });
  const first = await fingerprint();
  const subject = async (page) => (await (await page.goto(server.url)).securityDetails()).subjectName;
  const secure = (use) => visit({ ...at, url: server.url }, { ignoreHTTPSErrors: true }, use);
  await secure(async (page) => {
    assert.equal(await subject(page), "first.test");
    await page.getByRole("heading", { name: "Nothing has been collected yet" }).waitFor();
    make("second.test");
    await eventually("another certificate", async () => (await fingerprint()) !== first);
    // The page that is open goes on.
    await page.getByRole("link", { name: "Collector", exact: true }).click();
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
  });
  // A context of its own: the first one's connections stay as they are.
  await secure(async (page) => {
    assert.equal(await subject(page), "second.test");
    await page.getByRole("heading", { name: "Nothing has been collected yet" }).waitFor();
  });
});
