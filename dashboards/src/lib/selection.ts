/** The trials chosen for comparison. They follow the reader from page to page and are forgotten with the tab. */

import { useSyncExternalStore } from "react";

const KEY = "evenload.selection";
const listeners = new Set<() => void>();
let chosen: readonly string[] | null = null;

function read(): readonly string[] {
  if (chosen !== null) return chosen;
  const stored = window.sessionStorage.getItem(KEY);
  chosen = stored === null || stored === "" ? [] : stored.split(",");
  return chosen;
}

function write(next: readonly string[]): void {
  chosen = next;
  window.sessionStorage.setItem(KEY, next.join(","));
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The ids of the chosen trials, in order of choosing. */
export function useSelection(): readonly string[] {
  return useSyncExternalStore(subscribe, read);
}

export function toggleSelected(id: string): void {
  const before = read();
  write(before.includes(id) ? before.filter((other) => other !== id) : [...before, id]);
}

export function setSelection(ids: readonly string[]): void {
  write(ids);
}

/** The address that compares the trials. */
export function compareAddress(ids: readonly string[]): string {
  return `/compare?trials=${ids.join(",")}`;
}
