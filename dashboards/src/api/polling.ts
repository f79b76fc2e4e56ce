/** How often what the pages show is asked again. */

export const LIVE_MS = 2_000;
export const SLOWEST_MS = 30_000;
/** Runs flush their telemetry every couple of seconds; asking more often for the larger answers shows nothing new. */
export const LIVE_SERIES_MS = 4_000;

export interface Poll {
  readonly state: { readonly status: string; readonly dataUpdatedAt: number };
}

/** Polling that backs off: after errors it waits as long as it has been without data, so the wait doubles up to 30 s. */
export function every(period: number): (query: Poll) => number {
  return (query) => {
    if (query.state.status !== "error") return period;
    return Math.min(SLOWEST_MS, Math.max(period, Date.now() - query.state.dataUpdatedAt));
  };
}

/** Polling while something may still change, else none. */
export const while_ = (live: boolean, period: number): { refetchInterval: ((query: Poll) => number) | false } => ({
  refetchInterval: live ? every(period) : false,
});

const ENDED: ReadonlySet<string> = new Set(["completed", "pruned", "failed", "infeasible", "cancelled", "lost"]);

/** True while the state of an experiment, trial or run may still change. */
export function isLive(state: string | undefined): boolean {
  return state !== undefined && !ENDED.has(state);
}
