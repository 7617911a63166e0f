// Where there is no SharedWorker (Chrome on Android): of the tabs that are seen, one holds the stream and passes it on by
// BroadcastChannel. The leader says so every 2 s; when it falls silent or resigns, the others take over; of two leaders the one
// with the smaller id stays.
import { Stream, type News } from "./stream.ts";

type Word =
  | { kind: "lead"; id: string }
  | { kind: "resign"; id: string }
  /** A tab that was just shown asks for what is known. */
  | { kind: "join"; id: string }
  | { kind: "news"; id: string; news: News }
  | { kind: "reopen"; id: string };

const BEAT_MS = 2_000;
/** Three beats missed. */
const SILENT_MS = 6_500;
/** How long a new tab waits for a leader to answer. */
const JOIN_MS = 300;
/** After a leader resigned each waits at random, so that mostly one claims. */
const CLAIM_SPREAD_MS = 150;

export class Election {
  readonly #id = Array.from(crypto.getRandomValues(new Uint32Array(2)), (part) => part.toString(16)).join("");
  readonly #stream: Stream;
  #channel: BroadcastChannel | null = null;
  #beat: ReturnType<typeof setInterval> | undefined;
  #claim: ReturnType<typeof setTimeout> | undefined;

  constructor(
    url: string,
    readonly tell: (news: News) => void,
  ) {
    this.#stream = new Stream(url, (news) => {
      this.#say({ kind: "news", id: this.#id, news });
      tell(news);
    });
  }

  show(): void {
    if (this.#channel !== null) return;
    this.#channel = new BroadcastChannel(`kvmetry-live ${new URL(document.baseURI).pathname}`);
    this.#channel.onmessage = ({ data }: MessageEvent<Word>) => this.#hear(data);
    this.#say({ kind: "join", id: this.#id });
    this.#claimIn(JOIN_MS);
  }

  hide(): void {
    if (this.#leads) {
      this.#follow();
      this.#say({ kind: "resign", id: this.#id });
    }
    clearTimeout(this.#claim);
    this.#channel?.close();
    this.#channel = null;
  }

  reopen(): void {
    if (this.#leads) this.#stream.reopen();
    else this.#say({ kind: "reopen", id: this.#id });
  }

  get #leads(): boolean {
    return this.#beat !== undefined;
  }

  #hear(word: Word): void {
    if (word.kind === "lead") {
      if (this.#leads && this.#id < word.id) this.#say({ kind: "lead", id: this.#id });
      else {
        this.#follow();
        this.#claimIn(SILENT_MS);
      }
    } else if (word.kind === "resign") {
      this.#claimIn(Math.random() * CLAIM_SPREAD_MS);
    } else if (word.kind === "news") {
      if (!this.#leads) this.tell(word.news);
    } else if (this.#leads && word.kind === "reopen") {
      this.#stream.reopen();
    } else if (this.#leads && word.kind === "join") {
      this.#say({ kind: "lead", id: this.#id });
      for (const news of this.#stream.recall()) this.#say({ kind: "news", id: this.#id, news });
    }
  }

  #claimIn(ms: number): void {
    clearTimeout(this.#claim);
    this.#claim = setTimeout(() => this.#lead(), ms);
  }

  #lead(): void {
    clearInterval(this.#beat);
    this.#beat = setInterval(() => this.#say({ kind: "lead", id: this.#id }), BEAT_MS);
    this.#say({ kind: "lead", id: this.#id });
    this.#stream.open();
  }

  #follow(): void {
    clearInterval(this.#beat);
    this.#beat = undefined;
    this.#stream.close();
  }

  #say(word: Word): void {
    this.#channel?.postMessage(word);
  }
}
