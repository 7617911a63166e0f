// An answer that takes the server long: lines of JSON (application/x-ndjson), of which all but the last say how far it is.
//
//   {"done":3,"of":15}          zero or more
//   the answer itself, or {"error":"what and what to do"}
import { answered, BROKE_OFF, Refused, Unreachable } from "./http.ts";

export interface Progress {
  done: number;
  of: number;
}

/** All lines together. 100 panels of 1,600 points are a quarter of it; what is longer is no page, and is not read on. */
export const MOST_CHARS = 64 * 1024 * 1024;

/** Asks; whether the answer comes in lines or, as most do, as plain JSON is the server's choice. */
export function getInParts<T>(path: string, signal: AbortSignal, progress: (progress: Progress) => void): Promise<T> {
  return answered(path, signal, async (response, heard) => {
    const inLines = response.headers.get("content-type")?.startsWith("application/x-ndjson") ?? false;
    return inLines ? whole<T>(response, progress, heard) : ((await response.json()) as T);
  });
}

/** Reads up to the answer itself. */
export async function whole<T>(response: Response, progress: (progress: Progress) => void, heard: () => void, most = MOST_CHARS): Promise<T> {
  for await (const line of lines(response, heard, most)) {
    const value = parsed(line);
    if (isProgress(value)) progress({ done: value.done, of: value.of });
    else if (typeof value["error"] === "string") throw new Refused(response.status, value["error"]);
    else return value as T;
  }
  throw new Unreachable(BROKE_OFF);
}

async function* lines(response: Response, heard: () => void, most: number): AsyncGenerator<string> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  // It keeps the beginning of a character whose rest is in the next chunk.
  const decoder = new TextDecoder();
  let chars = 0;
  let begun = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      heard();
      const text = done ? decoder.decode() : decoder.decode(value, { stream: true });
      chars += text.length;
      if (chars > most) throw new Refused(response.status, `the answer is longer than ${most / 1024 / 1024} Mi characters: choose a shorter range`);
      let next = 0;
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", next)) {
        yield begun + text.slice(next, end);
        begun = "";
        next = end + 1;
      }
      begun += text.slice(next);
      if (!done) continue;
      if (begun !== "") yield begun;
      return;
    }
  } finally {
    // What is not read is not to be sent either.
    await reader.cancel();
  }
}

/** Half a line is all that is left of an answer that broke off. */
function parsed(line: string): Record<string, unknown> {
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    throw new Unreachable(BROKE_OFF);
  }
}

function isProgress(value: Record<string, unknown>): value is Record<string, unknown> & Progress {
  return typeof value["done"] === "number" && typeof value["of"] === "number";
}
