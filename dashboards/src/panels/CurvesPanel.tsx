/** One metric of several trials over a common x. */

import { useMemo, type ReactNode } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { linesToCsv, lineOf } from "../charts/lines";
import { LineChart, type ChartLine } from "../charts/LineChart";
import type { XMark, XSpan } from "../charts/marks";
import { Panel } from "../components/Panel";
import { formatDuration, shortCount } from "../lib/format";
import { definition, axisName, metricName, type Catalogue } from "./metrics";

/** A trial as a curve. */
export interface Curve {
  readonly trialId: string;
  readonly label: string;
  readonly slot: number;
  readonly end?: "cut" | "failed" | "open" | undefined;
}

interface Props {
  readonly title: string;
  readonly hint?: ReactNode;
  readonly answer: Answer<Schemas["Series"]>;
  readonly metric: string;
  readonly catalogue: Catalogue;
  readonly curves: readonly Curve[];
  /** Of an evaluation metric. */
  readonly domain?: string;
  readonly emptyText: string;
  readonly height?: number;
  readonly warmup?: number;
  readonly marks?: readonly XMark[];
  readonly spans?: readonly XSpan[];
  readonly zoom?: readonly [number, number] | null;
  readonly onZoom?: (range: readonly [number, number] | null) => void;
  readonly syncKey?: string;
  readonly strong?: string | null;
  readonly legend?: boolean;
  readonly logY?: boolean;
  readonly compact?: boolean;
  readonly className?: string;
}

const X_NAMES: Readonly<Record<Schemas["Series"]["x"], string>> = {
  step: "step",
  tokens: "training tokens",
  time: "training time",
  flops: "training FLOPs",
};

/** How values of the axis are written. */
export function formatterOf(x: Schemas["Series"]["x"]): (value: number) => string {
  return x === "time" ? formatDuration : shortCount;
}

function download(name: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** The lines of one metric in the answer, in order of the curves. */
export function linesOf(series: Schemas["Series"], metric: string, domain: string | undefined, curves: readonly Curve[]): ChartLine[] {
  const sparse = metric.startsWith("eval/");
  return curves.flatMap((curve) => {
    const item = series.items.find((candidate) => candidate.trial_id === curve.trialId && candidate.key === metric && (domain === undefined || candidate.domain === domain));
    if (item === undefined || item.last.every((value) => value === null)) return [];
    const line = lineOf({ grid: series.grid, last: item.last, min: item.min, max: item.max, raw: series.raw }, sparse);
    return [{ key: curve.trialId, label: curve.label, slot: curve.slot, end: curve.end, ...line }];
  });
}

export function CurvesPanel(props: Props): React.JSX.Element {
  const { title, hint, answer, metric, catalogue, curves, domain, emptyText, height, className } = props;
  const lines = useMemo(() => (answer.data === undefined ? [] : linesOf(answer.data, metric, domain, curves)), [answer.data, metric, domain, curves]);
  const nonfinite = answer.data?.items.filter((item) => lines.some((line) => line.key === item.trial_id) && item.key === metric && (domain === undefined || item.domain === domain)).reduce((sum, item) => sum + item.num_nonfinite, 0) ?? 0;
  const rows = answer.data?.items.filter((item) => item.key === metric).reduce((most, item) => Math.max(most, item.num_rows), 0) ?? 0;
  const reduced = answer.data?.raw === false;
  return (
    <Panel
      title={title}
      hint={
        <>
          {hint ?? definition(metric, catalogue)}
          {reduced && answer.data !== undefined && ` ${answer.data.grid.length} buckets of up to ${rows} rows; shaded: lowest to highest.`}
        </>
      }
      className={className ?? ""}
      answer={answer}
      height={(height ?? 240) + 40}
      empty={() => (lines.length === 0 ? emptyText : null)}
      actions={
        lines.length > 0 && (
          <>
          {nonfinite > 0 && <span className="tag tone-bad">{nonfinite} not finite (NaN or infinite)</span>}
          <button type="button" className="quiet-button" onClick={() => download(`${metric.replace("/", "-")}.csv`, linesToCsv(answer.data?.x ?? "x", lines))}>
            CSV
          </button>
          </>
        )
      }
    >
      {(series) => (
        <LineChart
          lines={lines}
          xName={X_NAMES[series.x]}
          yName={axisName(metric, catalogue)}
          formatX={formatterOf(series.x)}
          points={metric.startsWith("eval/")}
          summary={`${metricName(metric)} of ${lines.length} ${lines.length === 1 ? "trial" : "trials"} over ${X_NAMES[series.x]}.`}
          {...(height === undefined ? {} : { height })}
          {...(props.warmup === undefined ? {} : { warmup: props.warmup })}
          {...(props.marks === undefined ? {} : { marks: props.marks })}
          {...(props.spans === undefined ? {} : { spans: props.spans })}
          {...(props.zoom === undefined ? {} : { zoom: props.zoom })}
          {...(props.onZoom === undefined ? {} : { onZoom: props.onZoom })}
          {...(props.syncKey === undefined ? {} : { syncKey: props.syncKey })}
          {...(props.strong === undefined ? {} : { strong: props.strong })}
          {...(props.legend === undefined ? {} : { legend: props.legend })}
          {...(props.compact === undefined ? {} : { compact: props.compact })}
          {...(props.logY === undefined ? {} : { logY: props.logY })}
        />
      )}
    </Panel>
  );
}
