// Asking the server: addresses relative to <base>, JSON out, and errors that say whose fault it is.
import type { Session } from "./api.ts";
import { Store } from "./store.ts";

/** Longer than the server's own time-out of a query, so that its words arrive rather than ours. */
const TIMEOUT_MS = 60_000;

const SILENT = `the server cannot be reached: no answer within ${TIMEOUT_MS / 1000} s`;
export const BROKE_OFF = "the answer broke off";

/** What the server answered instead of what was asked for. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** The server could not be reached, or went away in the middle of its answer. */
export class Unreachable extends Error {}

/** Whether a token is needed, and whether there is one. `needed` and not `login`: the login form is shown. */
export const session = new Store<Session>({ login: true, needed: false });

/** Logins and logouts of this tab: what was asked before the newest one tells nothing of the session after it. */
let era = 0;

export function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return answered(path, signal, async (response) => (await response.json()) as T);
}

/** What `read` makes of an answer's body. It says by `heard` that more of it came; without that the whole has one time-out. */
export async function answered<T>(
  path: string,
  signal: AbortSignal | undefined,
  read: (response: Response, heard: () => void) => Promise<T>,
): Promise<T> {
  const patience = new Patience(signal);
  try {
    return await read(await ask(path, { signal: patience.signal }), () => patience.renew());
  } catch (error) {
    if (signal?.aborted || error instanceof Refused || error instanceof Unreachable) throw error;
    throw new Unreachable(patience.over ? SILENT : BROKE_OFF);
  } finally {
    patience.end();
  }
}

/** Aborts with the caller's signal, or when nothing was heard for too long. */
class Patience {
  readonly #control = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  over = false;

  constructor(outer: AbortSignal | undefined) {
    if (outer?.aborted) this.#control.abort(outer.reason);
    outer?.addEventListener("abort", () => this.#control.abort(outer.reason), { once: true });
    this.renew();
  }

  get signal(): AbortSignal {
    return this.#control.signal;
  }

  renew(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.over = true;
      this.#control.abort();
    }, TIMEOUT_MS);
  }

  end(): void {
    clearTimeout(this.#timer);
  }
}

export async function logIn(token: string): Promise<void> {
  const response = await send("api/session", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (!response.ok) throw new Refused(response.status, await reason(response));
  era += 1;
  session.set({ login: true, needed: true });
}

export async function logOut(): Promise<void> {
  await send("api/session", { method: "DELETE" });
  era += 1;
  session.set({ login: false, needed: true });
}

/** Asks whether a token is needed; a server that is gone is told by the stream, not here. */
export async function checkSession(): Promise<void> {
  const asked = era;
  try {
    const answer = await get<Session>("api/session");
    if (asked === era) session.set(answer);
  } catch (error) {
    if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
  }
}

async function ask(path: string, init: RequestInit): Promise<Response> {
  const asked = era;
  const response = await send(path, init);
  if (response.ok) return response;
  if (response.status === 401 && asked === era) session.set({ login: false, needed: true });
  throw new Refused(response.status, await reason(response));
}

async function send(path: string, init: RequestInit): Promise<Response> {
  const signal = init.signal ?? AbortSignal.timeout(TIMEOUT_MS);
  try {
    return await fetch(new URL(path, document.baseURI), { ...init, signal, credentials: "same-origin" });
  } catch {
    throw new Unreachable(signal.aborted ? SILENT : "the server cannot be reached: no connection");
  }
}

async function reason(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { error?: unknown };
    if (typeof body.error === "string") return body.error;
  } catch {
    // Not our server's words: a proxy in between, say.
  }
  return `the server answered ${response.status} ${response.statusText}`.trim();
}
