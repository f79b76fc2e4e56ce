/** Whether what is on the page follows the experiment. */

import type { ApiError } from "../api/client";
import { formatTime } from "../lib/format";

interface Props {
  readonly live: boolean;
  readonly answer: { readonly error: ApiError | null; readonly dataUpdatedAt: number };
}

export function LiveChip({ live, answer }: Props): React.JSX.Element | null {
  if (answer.error !== null && answer.dataUpdatedAt > 0) {
    return <span className="tag tone-warn">stale, last update {formatTime(answer.dataUpdatedAt).split(", ").pop()}</span>;
  }
  if (!live) return null;
  return (
    <span className="tag tone-live">
      <span className="pulse" aria-hidden="true" /> live
    </span>
  );
}
