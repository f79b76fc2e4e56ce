/** Alarms as spans of a trial: from where a rule's alarm was raised to where it was cleared. */

import type { Schemas } from "../api/client";
import type { XSpan } from "../charts/marks";
import { formatNumber } from "../lib/format";
import { AT_LEAST, AT_MOST } from "../lib/glyphs";
import { metricName } from "./metrics";

type Alarm = Schemas["Alarm"];

/** One alarm of one rule about one layer, or about no single one. */
export interface AlarmSpan {
  readonly raised: Alarm;
  /** Null while it stands, or where the run ended with it. */
  readonly cleared: Alarm | null;
}

const RULES: Readonly<Record<string, string>> = {
  collapse: "collapse",
  dead_experts: "dead experts",
  divergence: "divergence",
  entropy_floor: "entropy floor",
};

/** The rule as people call it; a rule that is a metric's own goes by the metric. */
export function ruleInWords(rule: string): string {
  return RULES[rule] ?? metricName(rule);
}

/** What the rule asks of its metric: `MaxVio >= 2 for 50 steps`. */
export function conditionInWords({ metric, comparison, threshold, for_steps: forSteps }: Pick<Alarm, "metric" | "comparison" | "threshold" | "for_steps">): string {
  const sign = comparison === "at_least" ? AT_LEAST : AT_MOST;
  return `${metricName(metric)} ${sign} ${formatNumber(threshold, 3)}${forSteps > 1 ? ` for ${forSteps} steps` : ""}`;
}

/** Each raised alarm with the next one of the same rule, metric and layer of the trial that clears it, in order of steps. */
export function alarmSpans(alarms: readonly Alarm[]): AlarmSpan[] {
  const spans: { raised: Alarm; cleared: Alarm | null }[] = [];
  const standing = new Map<string, { raised: Alarm; cleared: Alarm | null }>();
  for (const alarm of alarms) {
    const about = JSON.stringify([alarm.trial_id, alarm.severity, alarm.rule, alarm.metric, alarm.layer]);
    if (alarm.change === "raised") {
      const span = { raised: alarm, cleared: null };
      spans.push(span);
      standing.set(about, span);
    } else {
      const span = standing.get(about);
      // Of an alarm whose beginning a later run went over again only the end is left: there is nothing to show.
      if (span === undefined) continue;
      span.cleared = alarm;
      standing.delete(about);
    }
  }
  return spans;
}

/** The spans as bars below curves over steps or tokens, labelled A1, A2 as in the table. */
export function alarmBars(spans: readonly AlarmSpan[], x: "step" | "tokens"): XSpan[] {
  return spans.map(({ raised, cleared }, index) => ({ from: raised[x], to: cleared === null ? null : cleared[x], label: `A${index + 1}`, grave: raised.severity === "stop" }));
}

/** The rules of a configuration in words: what is watched, and which of it ends the run. */
export function watchedInWords(config: Readonly<Record<string, unknown>> | null): string {
  const names = (field: string): string[] => {
    const rules = config?.[field];
    if (!Array.isArray(rules)) return [];
    return [...new Set(rules.map((rule: { kind?: string; metric?: string }) => ruleInWords((rule.kind === "metric" ? rule.metric : rule.kind) ?? "")))];
  };
  const warned = names("warn_when");
  const stopped = names("stop_when");
  const parts = [
    warned.length > 0 ? `Watched: ${warned.join(", ")}.` : "No rule of warn_when is set.",
    stopped.length > 0 ? `Would end the run: ${stopped.join(", ")}.` : "None ends the run.",
  ];
  return parts.join(" ");
}
