// The frame of every page: header with the connection's state, the page that the address names, login and help.
import { useEffect, useRef, useState } from "preact/hooks";
import { CollectorPage } from "./collector/page.tsx";
import { FleetPage } from "./fleet/page.tsx";
import { view } from "./fleet/state.ts";
import { logOut, session } from "./http.ts";
import { go, route, type Page } from "./route.ts";
import { useStore } from "./store.ts";
import { Announcer } from "./ui/announcer.tsx";
import { Help } from "./ui/help.tsx";
import { LinkState, Lost, Troubled } from "./ui/link.tsx";
import { Login } from "./ui/login.tsx";
import { useShortcuts } from "./ui/shortcuts.ts";
import { VmPage } from "./vm/page.tsx";

const TITLES: Record<Page, string> = { fleet: "Fleet", vm: "VM", collector: "Collector", unknown: "Not found" };

export function App({ reopen }: { reopen: () => void }) {
  const at = useStore(route());
  const { login, needed } = useStore(session);
  const { up, fleet, downSince, trouble } = useStore(view);
  const [help, setHelp] = useState(false);
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  const locked = needed && !login;
  const lost = !up && downSince !== null;

  useEffect(() => {
    if (at.page !== "vm") document.title = `${TITLES[at.page]} · kvmetry`;
    // A new page begins at its top, also for a screen reader; the first one is where the browser put it.
    if (first.current) first.current = false;
    else main.current?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [at.page, at.uuid]);

  /** The stream was opened with the old cookie; a server that cannot be reached is told by the frame. */
  const leave = () => void logOut().then(reopen, () => undefined);

  useShortcuts({
    "?": () => setHelp(true),
    f: () => go("./"),
    c: () => go("collector"),
  });

  return (
    <div class={`frame page-${locked ? "login" : at.page}${(lost || trouble !== null) && fleet !== null ? " stale" : ""}`}>
      <button type="button" class="skip" onClick={() => main.current?.focus()}>Skip to content</button>
      <header class="top">
        <a class="brand" href="./" aria-label="kvmetry, fleet">
          <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M1 10h3.5l2-6 3 9 1.7-4H15" /></svg>
          kvmetry
        </a>
        {!locked && (
          <nav aria-label="Pages">
            <a href="./" aria-current={at.page === "fleet" ? "page" : undefined}>Fleet</a>
            <a href="collector" aria-current={at.page === "collector" ? "page" : undefined}>Collector</a>
          </nav>
        )}
        <div class="right">
          {!locked && <LinkState />}
          {needed && login && <button type="button" class="quiet" onClick={leave}>Log out</button>}
          <button type="button" class="quiet" aria-label="Help and keyboard shortcuts" onClick={() => setHelp(true)}>?</button>
        </div>
      </header>
      {!locked && lost && <Lost since={downSince} hasValues={fleet !== null} />}
      {!locked && !lost && trouble !== null && <Troubled at={fleet?.at ?? null} words={trouble} />}
      <main ref={main} tabIndex={-1}>
        {locked ? <Login done={reopen} /> : <Content page={at.page} uuid={at.uuid} query={at.query} />}
      </main>
      <Announcer />
      {help && <Help close={() => setHelp(false)} />}
    </div>
  );
}

function Content({ page, uuid, query }: { page: Page; uuid: string; query: URLSearchParams }) {
  switch (page) {
    case "fleet": return <FleetPage query={query} />;
    case "vm": return <VmPage key={uuid} uuid={uuid} query={query} />;
    case "collector": return <CollectorPage />;
    case "unknown":
      return (
        <section class="empty">
          <h1>There is no such page</h1>
          <p>The address leads nowhere. <a href="./">See the fleet.</a></p>
        </section>
      );
  }
}
