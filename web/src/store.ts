// A value that pages watch: the one way in which what arrives reaches what is drawn.
import { useLayoutEffect, useState } from "preact/hooks";

export class Store<T> {
  #value: T;
  #watchers = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set(value: T): void {
    this.#value = value;
    for (const watcher of this.#watchers) watcher();
  }

  watch(watcher: () => void): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }
}

/** The store's value; the component is drawn anew at each change. */
export function useStore<T>(store: Store<T>): T {
  const [, redraw] = useState({});
  // With the drawing: what is told between that and a later effect would be missed until the next change.
  useLayoutEffect(() => store.watch(() => redraw({})), [store]);
  return store.value;
}
