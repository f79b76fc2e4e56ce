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

/** The axis of a column of values; `domain` is the parameter's in the space, unknown for those inside of options. */
export function sliceAxis(values: readonly unknown[], domain: unknown): SliceAxis {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (known.length > 0 && known.every((value) => typeof value === "number" && Number.isFinite(value))) {
    const numbers = known as number[];
    const said = typeof domain === "object" && domain !== null && "log" in domain ? domain.log === true : Math.max(...numbers) > 50 * Math.min(...numbers);
    return { places: values.map((value) => (typeof value === "number" ? value : null)), names: null, log: said && numbers.every((value) => value > 0) };
  }
  const names = [...new Set(known.map(formatSetting))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return { places: values.map((value) => (value === null || value === undefined ? null : names.indexOf(formatSetting(value)))), names, log: false };
}
