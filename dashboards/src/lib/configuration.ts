/** Configurations as flat tables: dotted paths, and what differs between trials. */

/** Stands for a whole section in a document where another document has null. */
export const SECTION = Symbol("section");

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

/** One path and its value in each document: SECTION where it is a section there, `undefined` where it is missing. */
export interface Difference {
  readonly path: string;
  readonly values: readonly unknown[];
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
  const rows: Difference[] = [];
  for (const path of paths) {
    const having = flat.filter((leaves) => leaves.has(path)).map((leaves) => JSON.stringify(leaves.get(path)));
    const missing = having.length < flat.length;
    // Where a whole section is null in one document (a dense model's moe), its leaves differ only by being absent there.
    // One row for the section says it; leaves that also differ among the documents that have it stay.
    const sectionMissing = missing && flat.every((leaves) => leaves.has(path) || hasNullParent(leaves, path));
    if (new Set(having).size > 1 || (missing && !sectionMissing)) {
      rows.push({ path, values: flat.map((leaves) => (leaves.has(path) ? leaves.get(path) : isSection(leaves, path) ? SECTION : undefined)) });
    }
  }
  return rows;
}

function isSection(leaves: Map<string, unknown>, path: string): boolean {
  return [...leaves.keys()].some((other) => other.startsWith(`${path}.`));
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
