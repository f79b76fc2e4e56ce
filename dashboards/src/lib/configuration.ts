/** Configurations as flat tables: dotted paths, and what differs between trials. */

export type Setting = string | number | boolean | null | readonly unknown[];

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Dotted path -> leaf of a nested document. Lists are leaves: their elements are compared as one value. */
export function flatten(document: unknown, prefix = ""): Map<string, unknown> {
  const leaves = new Map<string, unknown>();
  if (!isRecord(document)) {
    if (prefix !== "") leaves.set(prefix, document);
    return leaves;
  }
  for (const [name, value] of Object.entries(document)) {
    const path = prefix === "" ? name : `${prefix}.${name}`;
    if (isRecord(value) && Object.keys(value).length > 0) {
      for (const [inner, leaf] of flatten(value, path)) leaves.set(inner, leaf);
    } else {
      leaves.set(path, value);
    }
  }
  return leaves;
}

/** One path and its value in each document, `undefined` where the document has no such path. */
export interface Difference {
  readonly path: string;
  readonly values: readonly unknown[];
}

function collapse(paths: readonly string[], absent: (path: string, index: number) => boolean, count: number): string[] {
  // Where a whole section is null in one document (a dense model's moe), its leaves all differ only by being absent.
  // One row for the section says it; the leaves that also differ among the documents that have it stay.
  return paths.filter((path) => {
    for (let index = 0; index < count; index += 1) if (!absent(path, index)) return true;
    return false;
  });
}

/** The paths on which the documents are not all equal, in order of first appearance. */
export function differences(documents: readonly unknown[]): Difference[] {
  const flat = documents.map((document) => flatten(document));
  const paths: string[] = [];
  const known = new Set<string>();
  for (const leaves of flat) {
    for (const path of leaves.keys()) {
      if (!known.has(path)) {
        known.add(path);
        paths.push(path);
      }
    }
  }
  const present = collapse(paths, (path, index) => !flat[index]?.has(path), flat.length);
  const rows: Difference[] = [];
  for (const path of present) {
    const having = flat.filter((leaves) => leaves.has(path)).map((leaves) => JSON.stringify(leaves.get(path)));
    const missing = having.length < flat.length;
    const sectionMissing = missing && flat.every((leaves) => leaves.has(path) || hasNullParent(leaves, path));
    if (new Set(having).size > 1 || (missing && !sectionMissing)) {
      rows.push({ path, values: flat.map((leaves) => leaves.get(path)) });
    }
  }
  return rows;
}

function hasNullParent(leaves: Map<string, unknown>, path: string): boolean {
  for (let dot = path.lastIndexOf("."); dot > 0; dot = path.lastIndexOf(".", dot - 1)) {
    const parent = path.slice(0, dot);
    if (leaves.has(parent) && leaves.get(parent) === null) return true;
  }
  return false;
}

/** The shortest endings of dotted paths that still tell them apart: `lr`, `router.lr_scale`. */
export function shortNames(paths: readonly string[]): Map<string, string> {
  const names = new Map<string, string>();
  for (const path of paths) {
    const parts = path.split(".");
    for (let take = 1; take <= parts.length; take += 1) {
      const ending = parts.slice(-take).join(".");
      const clash = paths.some((other) => other !== path && (other === ending || other.endsWith(`.${ending}`)));
      if (!clash || take === parts.length) {
        names.set(path, ending);
        break;
      }
    }
  }
  return names;
}
