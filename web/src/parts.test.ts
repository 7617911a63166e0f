// An answer in lines, however the network cuts it into chunks.
import { test } from "node:test";
import assert from "node:assert/strict";
import { BROKE_OFF, Refused, Unreachable } from "./http.ts";
import { whole, type Progress } from "./parts.ts";

/** What came of a body that arrives in these chunks, and whether it was given up before its end. */
async function read(chunks: (string | Uint8Array)[], most?: number) {
  const left = chunks.map((chunk) => (typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk));
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>(
    {
      pull(control) {
        const chunk = left.shift();
        if (chunk === undefined) control.close();
        else control.enqueue(chunk);
      },
      cancel: () => void (cancelled = true),
    },
    { highWaterMark: 0 },
  );
  const heard: Progress[] = [];
  let chunksHeard = 0;
  const answer = await whole<unknown>(new Response(body), (progress) => heard.push(progress), () => (chunksHeard += 1), most).catch((error: Error) => error);
  return { answer, heard: heard.map(({ done, of }) => `${done}/${of}`), chunksHeard, cancelled };
}

const TEXT = '{"done":0,"of":2}\n{"done":1,"of":2}\n{"names":["ü 𝄞"],"done":null}\n';

test("every cut in two gives the same, in a line or in a character", async () => {
  const bytes = new TextEncoder().encode(TEXT);
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    const { answer, heard, chunksHeard } = await read([bytes.slice(0, cut), bytes.slice(cut)]);
    assert.deepEqual(answer, { names: ["ü 𝄞"], done: null }, `cut at ${cut}`);
    assert.deepEqual(heard, ["0/2", "1/2"]);
    assert.ok(chunksHeard >= 1);
  }
});

test("byte by byte, and without the last line's end", async () => {
  const bytes = new TextEncoder().encode(TEXT.trimEnd());
  const { answer, heard, chunksHeard } = await read(Array.from(bytes, (byte) => Uint8Array.of(byte)));
  assert.deepEqual(answer, { names: ["ü 𝄞"], done: null });
  assert.deepEqual(heard, ["0/2", "1/2"]);
  assert.equal(chunksHeard, bytes.length + 1, "each one renews the time-out");
});

test("an answer at once has no parts", async () => {
  assert.deepEqual(await read(['{"uuid":"x"}\n']), { answer: { uuid: "x" }, heard: [], chunksHeard: 1, cancelled: true });
});

test("the server's own error is a refusal in its words", async () => {
  const { answer, heard } = await read(['{"done":3,"of":15}\n{"error":"part 4: no answer"}\n']);
  assert.ok(answer instanceof Refused);
  assert.equal(answer.message, "part 4: no answer");
  assert.deepEqual(heard, ["3/15"]);
});

test("a body that ends before its last line broke off", async () => {
  for (const chunks of [[], [""], ['{"done":3,"of":15}\n'], ['{"done":3,"of":15}\n{"uu'], ['{"done":3,"of"']]) {
    const { answer } = await read(chunks);
    assert.ok(answer instanceof Unreachable, JSON.stringify(chunks));
    assert.equal(answer.message, BROKE_OFF);
  }
});

test("what is too long is not read on", async () => {
  const endless = Array.from({ length: 100 }, () => "x".repeat(1024));
  const { answer, chunksHeard, cancelled } = await read(endless, 4096);
  assert.ok(answer instanceof Refused);
  assert.match(answer.message, /longer than/);
  assert.deepEqual([chunksHeard, cancelled], [5, true]);
});
