/** View state in the page's address: defaults are left out, what cannot be read counts as the default. */

import { useCallback } from "react";
import { useSearchParams } from "wouter";

/** One choice out of a few. */
export function oneOf<T extends string>(options: readonly T[], value: string | null, fallback: T): T {
  return options.find((option) => option === value) ?? fallback;
}

/** A whole number of at least `least`, or null. */
export function wholeNumber(value: string | null, least: number): number | null {
  if (value === null || !/^\d+$/.test(value)) return null;
  const number = Number(value);
  return Number.isSafeInteger(number) && number >= least ? number : null;
}

/** `from..to` with from < to, or null. */
export function numberRange(value: string | null): readonly [number, number] | null {
  const [from, to, more] = (value ?? "").split("..");
  if (from === undefined || to === undefined || more !== undefined || from === "" || to === "") return null;
  const range = [Number(from), Number(to)] as const;
  return Number.isFinite(range[0]) && Number.isFinite(range[1]) && range[0] < range[1] ? range : null;
}

/** The form `numberRange` reads. */
export function writeRange(range: readonly [number, number] | null): string | null {
  return range === null ? null : `${Number(range[0].toPrecision(7))}..${Number(range[1].toPrecision(7))}`;
}

/** Comma-separated ids, each once. */
export function idList(value: string | null): string[] {
  return [...new Set((value ?? "").split(",").filter((id) => /^[\w-]+$/.test(id)))];
}

/** The address's parameters and a way to change some of them; null removes one. */
export function useAddress(): readonly [URLSearchParams, (changes: Readonly<Record<string, string | null>>) => void] {
  const [params, setParams] = useSearchParams();
  const change = useCallback(
    (changes: Readonly<Record<string, string | null>>) => {
      setParams(
        (before) => {
          const next = new URLSearchParams(before);
          for (const [name, value] of Object.entries(changes)) {
            if (value === null) next.delete(name);
            else next.set(name, value);
          }
          return next;
        },
        // Sliders and switches would fill the history; Back goes to the page before.
        { replace: true },
      );
    },
    [setParams],
  );
  return [params, change];
}
