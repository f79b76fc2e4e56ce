import { expect, test } from "vitest";

import { lanesOf } from "../src/charts/marks";
import { alarmBars, alarmSpans, conditionInWords, ruleInWords, watchedInWords } from "../src/panels/alarms";

const alarm = (fields: Record<string, unknown>) =>
  ({ trial_id: "t", run_id: "r", step: 1, tokens: 10, rule: "collapse", severity: "warn", change: "raised", metric: "router/max_load", comparison: "at_least", threshold: 0.45, for_steps: 100, layer: 1, value: 0.5, ...fields }) as never;

test("an alarm ends with the next clearing of the same rule, metric and layer", () => {
  const spans = alarmSpans([
    alarm({ step: 10, tokens: 100, layer: 1 }),
    alarm({ step: 20, tokens: 200, layer: 2 }),
    alarm({ step: 30, tokens: 300, layer: 1, change: "cleared" }),
    alarm({ step: 40, tokens: 400, layer: 1, severity: "stop" }),
  ]);
  expect(spans.map(({ raised, cleared }) => [raised.step, cleared?.step ?? null])).toEqual([[10, 30], [20, null], [40, null]]);
  expect(alarmBars(spans, "tokens")).toEqual([
    { from: 100, to: 300, label: "A1", grave: false },
    { from: 200, to: null, label: "A2", grave: false },
    { from: 400, to: null, label: "A3", grave: true },
  ]);
});

test("the alarms of two trials do not clear each other, and an end without a beginning is nothing", () => {
  const spans = alarmSpans([alarm({ trial_id: "a" }), alarm({ trial_id: "b", change: "cleared" })]);
  expect(spans).toHaveLength(1);
  expect(spans[0]?.cleared).toBeNull();
});

test("rules and conditions in words", () => {
  expect(ruleInWords("dead_experts")).toBe("dead experts");
  expect(ruleInWords("router/max_violation")).toBe("MaxVio");
  expect(conditionInWords(alarm({ metric: "router/max_violation", threshold: 2, for_steps: 50 }))).toBe("MaxVio \u2265 2.00 for 50 steps");
  expect(conditionInWords(alarm({ metric: "router/token_entropy", comparison: "at_most", threshold: 0.0207, for_steps: 1 }))).toBe("token entropy \u2264 0.0207");
});

test("what is watched is read off the configuration", () => {
  expect(watchedInWords({ warn_when: [{ kind: "collapse" }, { kind: "metric", metric: "router/z" }], stop_when: [{ kind: "divergence" }] })).toBe(
    "Watched: collapse, z. Would end the run: divergence.",
  );
  expect(watchedInWords({ warn_when: [], stop_when: [] })).toBe("No rule of warn_when is set. None ends the run.");
});

test("bars that overlap lie above each other, the others on the bottom", () => {
  const span = (from: number, to: number | null) => ({ from, to, label: "", grave: false });
  expect(lanesOf([span(0, 10), span(5, null), span(10, 20), span(12, 13)])).toEqual([0, 1, 0, 2]);
});
