/** Forks as people write them: values as text, and which of the kept checkpoints a fork may begin from. */

/** A number as YAML and people write it: `1e-4` is one. */
const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$/;

/** The value that was typed: number, true, false, null, JSON in brackets, else the text itself. */
export function parseValue(text: string): unknown {
  const trimmed = text.trim();
  if (NUMBER.test(trimmed)) return Number(trimmed);
  if (trimmed === "true" || trimmed === "false") return trimmed === "true";
  if (trimmed === "null" || trimmed === "") return null;
  if (/^[[{"]/.test(trimmed)) {
    try {
      return JSON.parse(trimmed) as unknown;
    } catch {
      return trimmed;
    }
  }
  return trimmed;
}

/** A value as a field shows it, so that `parseValue` gives it back. */
export function writeValue(value: unknown): string {
  if (typeof value === "string") return NUMBER.test(value) || /^(true|false|null|)$/.test(value) ? JSON.stringify(value) : value;
  return value === undefined ? "" : JSON.stringify(value);
}

/** The value at a dotted path; places in a list go by their index. Undefined where there is none. */
export function valueAt(document: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((place, name) => (typeof place === "object" && place !== null ? (place as Record<string, unknown>)[name] : undefined), document);
}

/** Only what differs from the configuration, as the API takes it. */
export function changesOf(typed: ReadonlyMap<string, string>, config: unknown): Record<string, unknown> {
  const changes: Record<string, unknown> = {};
  for (const [path, text] of typed) {
    const value = parseValue(text);
    if (JSON.stringify(value) !== JSON.stringify(valueAt(config, path) ?? null)) changes[path] = value;
  }
  return changes;
}

/** The newest of the kept checkpoints before a step; null if none is kept. */
export function checkpointBefore<T extends { readonly step: number }>(checkpoints: readonly T[], step: number): T | null {
  return checkpoints.reduce<T | null>((best, one) => (one.step < step && (best === null || one.step >= best.step) ? one : best), null);
}

/** JSON pointer -> the path of the field it is about; `/set/optimizer.lr` is `optimizer.lr`. */
export function fieldOf(pointer: string): string {
  const parts = pointer.split("/").slice(1).map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
  return parts[0] === "set" ? parts.slice(1).join(".") : parts.join(".");
}
