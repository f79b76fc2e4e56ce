/** Configurations tried with several seeds: means with their intervals, and differences to the baseline seed by seed. */

import { Link } from "wouter";

import type { Schemas } from "../api/client";
import { shortNames } from "../lib/configuration";
import { formatFixed, formatNumber, formatSetting, formatSigned } from "../lib/format";
import { DOT, NONE } from "../lib/glyphs";
import { differenceTone, objectiveUnit } from "./objective";

type PointRow = Schemas["PointRow"];

const MOST = 8;

/** The point's name: a baseline's own, else its number. */
export function pointName({ kind, label, point }: Pick<PointRow, "kind" | "label" | "point">): string {
  return kind === "baseline" ? (label ?? `baseline ${point}`) : `point ${point}`;
}

/** The paired difference to the first baseline that the point has one to; null for that baseline. */
export function firstDifference({ differences }: Pick<PointRow, "differences">): PointRow["differences"][number] | null {
  return differences.reduce<PointRow["differences"][number] | null>((first, one) => (first === null || one.baseline_point < first.baseline_point ? one : first), null);
}

/** What the interval of the paired difference says. */
export function pairedInWords(difference: PointRow["differences"][number] | null): string {
  if (difference === null) return "";
  const pairs = `${difference.num_pairs} ${difference.num_pairs === 1 ? "pair" : "pairs"}`;
  if (difference.within_noise === null) return `${pairs}: no interval`;
  return `${difference.within_noise ? "within" : "beyond"} seed noise`;
}

/** Place in per cent of a value between the lowest and the highest end of all intervals. */
export function placeOf(value: number, low: number, high: number): number {
  return high > low ? ((value - low) / (high - low)) * 100 : 50;
}

/** Seeds of the point, in words: how many completed, and what became of the others. */
export function seedsInWords({ num_completed: completed, num_failed: failed, num_open: open }: Pick<PointRow, "num_completed" | "num_failed" | "num_open">): string {
  const parts = [`n=${completed}`];
  if (failed > 0) parts.push(`${failed} failed`);
  if (open > 0) parts.push(`${open} to come`);
  return parts.join(", ");
}

export function PointRanking({ comparison }: { readonly comparison: Schemas["Comparison"] }): React.JSX.Element {
  const measured = comparison.points.filter((row) => row.mean !== null);
  const shown = measured.slice(0, MOST);
  const baseline = measured.find((row) => row.kind === "baseline");
  if (baseline !== undefined && !shown.includes(baseline)) shown[shown.length - 1] = baseline;
  const ends = shown.flatMap((row) => [row.low ?? row.mean ?? 0, row.high ?? row.mean ?? 0]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const names = shortNames([...new Set(shown.flatMap((row) => Object.keys(row.params)))]);
  return (
    <>
      <div className="table-wrap">
        <table className="points">
          <caption className="visually-hidden">Means over seeds</caption>
          <thead>
            <tr>
              <th scope="col" className="num">#</th>
              <th scope="col">Configuration</th>
              <th scope="col" className="interval-cell">Mean and 95 % interval (t)</th>
              <th scope="col" className="num">{objectiveUnit(comparison.objective)}</th>
              <th scope="col" className="num" title="Over the seeds that both completed, seed by seed">Paired difference</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((row) => {
              const difference = firstDifference(row);
              const settings = Object.entries(row.params).map(([path, value]) => `${names.get(path) ?? path}=${formatSetting(value)}`);
              return (
                <tr key={row.point} className={row === baseline ? "total" : ""}>
                  <td className="num muted">{row.rank ?? NONE}</td>
                  <td>
                    {pointName(row)}
                    <span className="sub">{settings.join(` ${DOT} `)}</span>
                    <span className="sub">
                      {seedsInWords(row)}:{" "}
                      {row.trial_ids.map((id, seed) => (
                        <span key={id}>
                          {seed > 0 && ", "}
                          <Link href={`/t/${id}`} title={`seed ${seed}`}>
                            {seed}
                          </Link>
                        </span>
                      ))}
                    </span>
                  </td>
                  <td className="interval-cell">
                    <span className="interval" aria-hidden="true">
                      {row.low !== null && row.high !== null && <span className="interval-bar" style={{ left: `${placeOf(row.low, low, high)}%`, right: `${100 - placeOf(row.high, low, high)}%` }} />}
                      <span className="interval-mean" style={{ left: `${placeOf(row.mean ?? 0, low, high)}%` }} />
                    </span>
                  </td>
                  <td className="num">
                    {formatFixed(row.mean, 3)}
                    <span className="sub">{row.low === null || row.high === null ? "no interval" : `${formatFixed(row.low, 3)} to ${formatFixed(row.high, 3)}`}</span>
                  </td>
                  <td className="num">
                    {difference === null ? (
                      <span className="muted">{row === baseline ? "baseline" : NONE}</span>
                    ) : (
                      <>
                        <span className={difference.within_noise === false ? differenceTone(difference.value, comparison.objective) : ""}>{formatSigned(difference.value)}</span>
                        {difference.low !== null && difference.high !== null && <span className="sub">{`${formatNumber(difference.low, 2)} to ${formatNumber(difference.high, 2)}`}</span>}
                        <span className="sub">{pairedInWords(difference)}</span>
                      </>
                    )}
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      {measured.length > shown.length && <p className="muted">{measured.length - shown.length} more configurations; their trials are in the table below.</p>}
    </>
  );
}
