/** A state as icon, colour and word; the cause and reason beside it. Colour is never alone. */

import { NONE } from "../lib/glyphs";

const SHAPES: Readonly<Record<string, string>> = {
  queued: "M8 3v5l3 2",
  starting: "M8 3v5l3 2",
  running: "M6 4l6 4-6 4z",
  retrying: "M12 8a4 4 0 1 1-1.2-2.8M11 2v3.4H7.6",
  pausing: "M6 4v8M10 4v8",
  paused: "M6 4v8M10 4v8",
  cancelling: "M5 5h6v6H5z",
  cancelled: "M5 5h6v6H5z",
  completed: "M3.5 8.5l3 3 6-7",
  pruned: "M3 4l9 8M3 12l9-8M12 4l1-1",
  failed: "M4 4l8 8M4 12l8-8",
  lost: "M4 4l8 8M4 12l8-8",
  infeasible: "M3.5 3.5l9 9M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2z",
};

const TONES: Readonly<Record<string, string>> = {
  queued: "quiet",
  starting: "live",
  running: "live",
  retrying: "warn",
  pausing: "warn",
  paused: "quiet",
  cancelling: "warn",
  cancelled: "quiet",
  completed: "good",
  pruned: "cut",
  failed: "bad",
  lost: "bad",
  infeasible: "bad",
};

const CAUSES: Readonly<Record<string, string>> = {
  asha: "by ASHA",
  hyperband: "by Hyperband",
  median: "below the median",
  patience: "no improvement",
  pbt: "by PBT",
  stop_rule: "by a rule",
  diverged: "diverged",
  out_of_memory: "out of memory",
  invalid_config: "invalid configuration",
  does_not_fit: "does not fit in memory",
  data_invalid: "invalid data",
  error: "error",
  process_lost: "process lost",
  retries_exhausted: "retries exhausted",
  user: "by a user",
};

/** The cause in words. */
export function causeInWords(cause: string | null): string {
  return cause === null ? "" : (CAUSES[cause] ?? cause.replaceAll("_", " "));
}

export function tone(state: string): string {
  return TONES[state] ?? "quiet";
}

interface Props {
  readonly state: string;
  readonly cause?: string | null;
  readonly reason?: string;
}

export function StateBadge({ state, cause = null, reason = "" }: Props): React.JSX.Element {
  return (
    <span className="state-and-cause" title={reason === "" ? undefined : reason}>
      <span className={`state tone-${tone(state)}`}>
        <svg viewBox="0 0 16 16" width="13" height="13" aria-hidden="true">
          <path d={SHAPES[state] ?? "M8 8h0"} fill={state === "running" ? "currentColor" : "none"} stroke="currentColor" strokeWidth="1.8" strokeLinecap="round" strokeLinejoin="round" />
        </svg>
        {state}
      </span>
      {cause !== null && <span className="cause">{causeInWords(cause)}</span>}
    </span>
  );
}

interface CountsProps {
  readonly counts: Readonly<Record<string, number>>;
  readonly planned: number | null;
}

const ORDER = ["completed", "pruned", "running", "retrying", "failed", "infeasible", "cancelled", "queued"] as const;

/** How many trials are in which state, as a bar and in words. */
export function CountsBar({ counts, planned }: CountsProps): React.JSX.Element {
  const known = ORDER.reduce((sum, state) => sum + (counts[state] ?? 0), 0);
  const total = Math.max(planned ?? known, known, 1);
  const present = ORDER.filter((state) => (counts[state] ?? 0) > 0);
  const words = present.map((state) => `${counts[state] ?? 0} ${state}`);
  const open = total - known;
  if (open > 0 && planned !== null) words.push(`${open} to come`);
  return (
    <span className="counts">
      <span className="counts-bar" aria-hidden="true">
        {present.map((state) => (
          <span key={state} className={`counts-part tone-${tone(state)}`} style={{ width: `${((counts[state] ?? 0) / total) * 100}%` }} />
        ))}
      </span>
      <span className="counts-words">{words.length === 0 ? NONE : words.join(", ")}</span>
    </span>
  );
}
