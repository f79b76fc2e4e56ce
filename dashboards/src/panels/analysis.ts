/** The axis of one parameter: numbers as they are, logarithmic where the space is, everything else by name. */

import { formatSetting } from "../lib/format";

/** Where each trial lies on a parameter's axis. */
export interface SliceAxis {
  /** Null where the parameter does not exist for the trial. */
  readonly places: readonly (number | null)[];
  /** The names of the places 0, 1, 2 and so on; null where places are the numbers themselves. */
  readonly names: readonly string[] | null;
  readonly log: boolean;
}

/** The axis of a column of values; `log` is whether the parameter was searched on a logarithmic scale. */
export function sliceAxis(values: readonly unknown[], log: boolean): SliceAxis {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (known.length > 0 && known.every((value) => typeof value === "number" && Number.isFinite(value))) {
    const numbers = known as number[];
    return { places: values.map((value) => (typeof value === "number" ? value : null)), names: null, log: log && numbers.every((value) => value > 0) };
  }
  const names = [...new Set(known.map(formatSetting))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return { places: values.map((value) => (value === null || value === undefined ? null : names.indexOf(formatSetting(value)))), names, log: false };
}
