// One connection to api/live. EventSource tries again by itself and resumes by Last-Event-ID where the connection broke; where
// the server (or a proxy before it) refused, it gives up, and we try again with a new one.

/** What every tab hears, whoever holds the connection. */
export type News =
  | { kind: "fleet"; json: string }
  /** What was missed is gone: history has to be asked for. */
  | { kind: "hole" }
  /** Where the points are kept does not answer the server, in its words; the next `fleet` ends it. */
  | { kind: "trouble"; text: string }
  /** `since`: when the connection was lost, by this browser's clock; null while it is up. */
  | { kind: "link"; up: boolean; since: number | null };

export const RETRY_FIRST_MS = 1_000;
export const RETRY_MOST_MS = 15_000;
/** A connection can die without an error (a laptop woken elsewhere). Three beats of the server missed. */
export const SILENCE_MS = 45_000;
/** A server's words may come from another server: what is longer than a person reads is cut. */
export const TROUBLE_CHARS = 500;

export class Stream {
  #source: EventSource | null = null;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #silence: ReturnType<typeof setTimeout> | undefined;
  #delay = RETRY_FIRST_MS;
  #up: boolean | null = null;
  #since: number | null = null;
  #last: string | null = null;
  #trouble: string | null = null;

  constructor(
    readonly url: string,
    readonly tell: (news: News) => void,
  ) {}

  /** What somebody who joins late has to know. */
  recall(): News[] {
    const news: News[] = [];
    if (this.#up !== null) news.push({ kind: "link", up: this.#up, since: this.#since });
    if (this.#last !== null) news.push({ kind: "fleet", json: this.#last });
    if (this.#trouble !== null) news.push({ kind: "trouble", text: this.#trouble });
    return news;
  }

  open(): void {
    if (this.#source !== null) return;
    clearTimeout(this.#retry);
    const source = new EventSource(this.url);
    this.#source = source;
    this.#watch();
    source.onopen = () => {
      this.#delay = RETRY_FIRST_MS;
      this.#watch();
      this.#link(true);
    };
    source.onerror = () => {
      this.#link(false);
      if (source.readyState === EventSource.CLOSED) this.#again();
    };
    source.addEventListener("fleet", (event: MessageEvent<string>) => {
      this.#watch();
      this.#last = event.data;
      this.#trouble = null;
      this.tell({ kind: "fleet", json: event.data });
    });
    source.addEventListener("trouble", (event: MessageEvent<string>) => {
      this.#watch();
      this.#trouble = words(event.data);
      this.tell({ kind: "trouble", text: this.#trouble });
    });
    source.addEventListener("beat", () => this.#watch());
    source.addEventListener("hole", () => this.tell({ kind: "hole" }));
  }

  /** Nobody looks: the connection and what it told are given up. */
  close(): void {
    this.#drop();
    this.#up = null;
    this.#last = null;
    this.#trouble = null;
  }

  /** Now, not after the delay: somebody logged in. */
  reopen(): void {
    this.#drop();
    this.open();
  }

  #drop(): void {
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    this.#source?.close();
    this.#source = null;
  }

  #again(): void {
    this.#drop();
    this.#retry = setTimeout(() => this.open(), this.#delay);
    this.#delay = Math.min(this.#delay * 2, RETRY_MOST_MS);
  }

  #watch(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#link(false);
      this.reopen();
    }, SILENCE_MS);
  }

  #link(up: boolean): void {
    if (up === this.#up) return;
    this.#up = up;
    this.#since = up ? null : Date.now();
    this.tell({ kind: "link", up, since: this.#since });
  }
}

/** Of `{"error": "…"}`. */
function words(json: string): string {
  const { error } = JSON.parse(json) as { error: unknown };
  const text = String(error);
  return text.length > TROUBLE_CHARS ? `${text.slice(0, TROUBLE_CHARS)}…` : text;
}
