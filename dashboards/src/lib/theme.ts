/** Light or dark: the reader's choice if there is one, else the system's. */

import { useSyncExternalStore } from "react";

export type Theme = "light" | "dark";

const KEY = "evenload.theme";
const listeners = new Set<() => void>();

function system(): MediaQueryList {
  return window.matchMedia("(prefers-color-scheme: dark)");
}

function chosen(): Theme | null {
  const stored = window.localStorage.getItem(KEY);
  return stored === "light" || stored === "dark" ? stored : null;
}

function current(): Theme {
  return chosen() ?? (system().matches ? "dark" : "light");
}

function apply(): void {
  document.documentElement.dataset["theme"] = current();
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Sets the theme on the page and follows the system from now on. Called once, before the first paint. */
export function startTheme(): void {
  apply();
  system().addEventListener("change", apply);
}

/** The theme now in force. */
export function useTheme(): Theme {
  return useSyncExternalStore(subscribe, current);
}

/** Chooses the other theme; the choice is remembered when it differs from the system's. */
export function toggleTheme(): void {
  const next: Theme = current() === "dark" ? "light" : "dark";
  if ((next === "dark") === system().matches) window.localStorage.removeItem(KEY);
  else window.localStorage.setItem(KEY, next);
  apply();
}
