/** The best configuration of an experiment in two facts: how good, and how much better than the baseline. */

import type { Schemas } from "../api/client";
import type { Fact } from "../components/Facts";
import { formatFixed, formatSigned } from "../lib/format";
import { objectiveUnit } from "./objective";
import { firstDifference, pairedInWords, pointName, seedsInWords } from "./PointRanking";
import { noiseInWords } from "./RankingPanel";

/** A point's mean over its seeds where it has several, else a trial. */
export function bestFacts({ best, objective }: Pick<Schemas["ExperimentDetail"], "best" | "objective">, comparison: Schemas["Comparison"] | undefined): Fact[] {
  const unit = objectiveUnit(objective);
  const point = comparison?.points.find((row) => row.kind === "search" && row.rank !== null);
  if (point !== undefined) {
    const difference = firstDifference(point);
    return [
      { name: "Best", value: formatFixed(point.mean, 3), note: `${unit}, ${pointName(point)}, ${seedsInWords(point)}` },
      { name: "Best vs baseline", value: formatSigned(difference?.value ?? null), note: pairedInWords(difference) },
    ];
  }
  const row = comparison?.rows.find((one) => one.trial_id === best?.trial_id);
  return [
    { name: "Best", value: formatFixed(best?.objective ?? null, 3), note: best === null ? undefined : `${unit}, trial ${best.number}` },
    { name: "Best vs baseline", value: formatSigned(row?.difference_to_baseline ?? null), note: row === undefined ? undefined : noiseInWords(row, comparison?.baseline_trial_id ?? null) || "one seed: noise unknown" },
  ];
}
