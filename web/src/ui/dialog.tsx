// A modal dialog: the browser's own, which keeps the focus inside, gives it back, and closes by Escape.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";

export function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  // With the drawing: a key pressed just after belongs to the dialog.
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} aria-labelledby="dialog-title" onClose={close} onClick={(event) => {
      if (event.target === dialog.current) dialog.current?.close();
    }}>
      <div class="dialog-body">
        <header>
          <h2 id="dialog-title">{title}</h2>
          <button type="button" class="quiet" aria-label="Close" onClick={() => dialog.current?.close()}>✕</button>
        </header>
        {children}
      </div>
    </dialog>
  );
}
