// The address is the state: which page, and everything that a person chose on it. Back, forward, a bookmark and a link sent to
// somebody else show the same view.
import { Store } from "./store.ts";

export type Page = "fleet" | "vm" | "collector" | "unknown";

export interface Route {
  page: Page;
  /** of page vm */
  uuid: string;
  query: URLSearchParams;
}

/** How many zooms of this tab lie behind this entry of the history: so many times double-click may go back. */
export interface Trail {
  zooms: number;
}

export function parse(path: string, search: string): Route {
  const query = new URLSearchParams(search);
  const parts = path.split("/").filter((part) => part !== "");
  if (parts.length === 0) return { page: "fleet", uuid: "", query };
  if (parts.length === 1 && parts[0] === "collector") return { page: "collector", uuid: "", query };
  const uuid = parts.length === 2 && parts[0] === "vm" ? decoded(parts[1] ?? "") : null;
  return uuid === null ? { page: "unknown", uuid: "", query } : { page: "vm", uuid, query };
}

/** null where the escapes are broken: an address typed by hand. */
function decoded(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

/** A link to a VM; keeps the range that the person looks at. */
export function vmLink(uuid: string, range?: string): string {
  return `vm/${encodeURIComponent(uuid)}${range ? `?${range}` : ""}`;
}

/** A page's link with a query; empty values are left out, so that a plain view has a plain address. */
export function link(path: string, query: Record<string, string>): string {
  const kept = Object.entries(query).filter(([, value]) => value !== "");
  const text = new URLSearchParams(kept).toString();
  // An empty href would be the current address, not the base.
  return text === "" ? path || "./" : `${path || "./"}?${text}`;
}

let store: Store<Route> | undefined;

/** The current route. The browser's history is listened to from the first call on. */
export function route(): Store<Route> {
  if (store === undefined) {
    store = new Store(here());
    addEventListener("popstate", () => route().set(here()));
    document.addEventListener("click", follow);
  }
  return store;
}

/** Goes to a link made by `link` or `vmLink`: a new entry of the history, or the current one changed. */
export function go(to: string, how: { replace?: boolean; zooms?: number } = {}): void {
  const url = new URL(to, document.baseURI);
  const trail: Trail = { zooms: how.zooms ?? 0 };
  if (how.replace) history.replaceState(history.state, "", url);
  else history.pushState(trail, "", url);
  route().set(here());
}

export function trail(): Trail {
  const state = history.state as Partial<Trail> | null;
  return { zooms: state?.zooms ?? 0 };
}

function here(): Route {
  const base = new URL(document.baseURI).pathname;
  const path = location.pathname.startsWith(base) ? location.pathname.slice(base.length) : location.pathname;
  return parse(path, location.search);
}

/** Links of this dashboard change the view without loading the page anew; with a modifier they are the browser's. */
function follow(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const anchor = (event.target as Element | null)?.closest?.("a[href]");
  if (!(anchor instanceof HTMLAnchorElement) || anchor.target !== "" || anchor.hasAttribute("download")) return;
  if (!anchor.href.startsWith(document.baseURI)) return;
  event.preventDefault();
  go(anchor.href);
}
