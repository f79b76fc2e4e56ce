/** A wider space as people write it: two bounds for numbers, JSON for everything else. */

import { parseValue } from "./fork";

/** What was typed for one domain of the space. */
export interface TypedDomain {
  readonly low: string;
  readonly high: string;
  /** The domain itself, of what is no range of numbers. */
  readonly text: string;
}

type Domain = Readonly<Record<string, unknown>>;

const RANGES = ["int", "float"] as const;

/** Under which name a domain has its bounds; null of one that is no range. */
export function rangeOf(domain: Domain): (typeof RANGES)[number] | null {
  return RANGES.find((kind) => Array.isArray(domain[kind]) && domain[kind].length === 2) ?? null;
}

/** A domain as its fields show it. */
export function typedDomain(domain: Domain): TypedDomain {
  const kind = rangeOf(domain);
  if (kind === null) return { low: "", high: "", text: JSON.stringify(domain) };
  const [low, high] = domain[kind] as readonly unknown[];
  return { low: String(low), high: String(high), text: "" };
}

/** What of a range is neither low nor high, for people: `float, log`, `int, step 2`. */
export function rangeInWords(domain: Domain): string {
  const words: string[] = [rangeOf(domain) ?? "domain"];
  if (domain["log"] === true) words.push("log");
  if (typeof domain["step"] === "number" && !(domain["step"] === 1 && "int" in domain)) words.push(`step ${domain["step"]}`);
  return words.join(", ");
}

/** The domain that was typed, null where it cannot be one: whether it is wider is for the API to say. */
export function readDomain(typed: TypedDomain, before: Domain | null): Domain | null {
  const kind = before === null ? null : rangeOf(before);
  if (before !== null && kind !== null) {
    const bounds = [parseValue(typed.low), parseValue(typed.high)];
    return bounds.every((bound) => typeof bound === "number") ? { ...before, [kind]: bounds } : null;
  }
  const value = parseValue(typed.text);
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Domain) : null;
}

/** Only the domains that differ from the space, as the API takes them, and the paths whose text is no domain. */
export function widened(typed: ReadonlyMap<string, TypedDomain>, space: Readonly<Record<string, unknown>>): { readonly space: Record<string, Domain>; readonly unreadable: string[] } {
  const changed: Record<string, Domain> = {};
  const unreadable: string[] = [];
  for (const [path, text] of typed) {
    const before = (space[path] as Domain | undefined) ?? null;
    const domain = readDomain(text, before);
    if (domain === null) unreadable.push(path);
    else if (JSON.stringify(domain) !== JSON.stringify(before)) changed[path] = domain;
  }
  return { space: changed, unreadable };
}
