/** The time, for ages. */

import { useEffect, useState } from "react";

/** Now in UTC milliseconds, renewed every `periodMs`. */
export function useNow(periodMs = 15_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = window.setInterval(() => setNow(Date.now()), periodMs);
    return () => window.clearInterval(timer);
  }, [periodMs]);
  return now;
}
