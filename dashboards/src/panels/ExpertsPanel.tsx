/** Who is dead, who is hot, at one step: layers by experts, coloured by log2(load / fair share). */

import { useEffect, useMemo, useState } from "react";

import type { Schemas } from "../api/client";
import { decodeFrame, type LoadHistory } from "../api/loadHistory";
import { useLoads, type Answer } from "../api/queries";
import { divergingScale } from "../charts/colourTable";
import { ColourBar, Heatmap } from "../charts/Heatmap";
import { nearestIndex } from "../charts/ranges";
import { Panel } from "../components/Panel";
import { Switch } from "../components/Switch";
import { formatCount, formatNumber } from "../lib/format";
import { TIMES } from "../lib/glyphs";
import { useKeys } from "../lib/keys";
import { useTheme } from "../lib/theme";

export type ExpertOrder = "index" | "load";

interface Props {
  readonly trialId: string;
  readonly answer: Answer<LoadHistory>;
  readonly live: boolean;
  /** Null follows the newest step. */
  readonly step: number | null;
  readonly onStep: (step: number | null) => void;
  readonly order: ExpertOrder;
  readonly onOrder: (order: ExpertOrder) => void;
  readonly spikes: readonly Schemas["Spike"][];
}

const ORDERS = [
  { value: "index", name: "by index" },
  { value: "load", name: "by load" },
] as const;

/** Each row's columns in falling order of its value, dead ones last; without `byLoad` as they are. */
export function columnOrder(values: ArrayLike<number>, rows: number, columns: number, byLoad: boolean): Int32Array {
  const order = new Int32Array(rows * columns);
  for (let row = 0; row < rows; row += 1) {
    const ids = Array.from({ length: columns }, (_, column) => column);
    const value = (column: number): number => {
      const known = values[row * columns + column] ?? Number.NaN;
      return Number.isNaN(known) ? -Infinity : known;
    };
    if (byLoad) ids.sort((a, b) => (value(a) === value(b) ? a - b : value(b) > value(a) ? 1 : -1));
    order.set(ids, row * columns);
  }
  return order;
}

export function ExpertsPanel(props: Props): React.JSX.Element {
  return (
    <Panel
      title="Experts: load at one step"
      hint="Tokens each expert got, over the fair share of its layer. Neutral is fair, blue less, orange more. Counted over all workers and micro-batches of the step."
      className="wide"
      answer={props.answer}
      height={260}
      empty={({ meta }) => (meta.num_frames === 0 ? "No expert loads yet. The first rows come with the first flush, a few seconds after the start." : null)}
      actions={<Switch label="Order of experts" options={ORDERS} value={props.order} onChange={props.onOrder} />}
    >
      {(history) => <Experts {...props} history={history} />}
    </Panel>
  );
}

function useSettled<T>(value: T, delayMs: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = window.setTimeout(() => setSettled(value), delayMs);
    return () => window.clearTimeout(timer);
  }, [value, delayMs]);
  return settled;
}

function Experts({ trialId, history, live, step, onStep, order, spikes }: Props & { readonly history: LoadHistory }): React.JSX.Element {
  const { meta } = history;
  const theme = useTheme();
  const [playing, setPlaying] = useState(false);
  const last = meta.num_frames - 1;
  const frame = step === null ? last : nearestIndex(meta.steps, step);
  const shownStep = meta.steps[frame] ?? 0;
  const rows = meta.layers.length;
  const columns = meta.num_experts;

  const { values, dead, ids } = useMemo(() => {
    const raw = decodeFrame(history, frame);
    const order_ = columnOrder(raw.values, rows, columns, order === "load");
    const at = (cell: number): number => Math.floor(cell / columns) * columns + (order_[cell] ?? 0);
    return { values: raw.values.map((_, cell) => raw.values[at(cell)] ?? Number.NaN), dead: raw.dead.map((_, cell) => raw.dead[at(cell)] ?? 0), ids: order_ };
  }, [history, frame, rows, columns, order]);
  // No expert can get more than every token: num_experts / top_k times its fair share.
  const most = meta.top_k === null ? 4 : Math.log2(meta.num_experts / meta.top_k);
  const limit = Math.min(4, Math.max(1, Math.ceil(most)));
  const scale = useMemo(() => divergingScale(limit, theme), [limit, theme]);
  const exact = useLoads(trialId, useSettled(shownStep, 200), live, shownStep > 0);

  const go = (to: number): void => {
    const next = Math.max(0, Math.min(last, to));
    onStep(next === last ? null : (meta.steps[next] ?? null));
  };
  const jump = (by: 1 | -1): void => {
    const steps = spikes.map((spike) => spike.step);
    const next = by === 1 ? steps.find((candidate) => candidate > shownStep) : steps.findLast((candidate) => candidate < shownStep);
    if (next !== undefined) onStep(next);
  };
  useKeys({
    ArrowLeft: (event) => !(event.target instanceof HTMLCanvasElement) && go(frame - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => !(event.target instanceof HTMLCanvasElement) && go(frame + (event.shiftKey ? 10 : 1)),
    p: () => setPlaying((before) => !before),
    n: () => jump(1),
    b: () => jump(-1),
  });
  useEffect(() => {
    if (!playing) return undefined;
    const timer = window.setTimeout(() => (frame >= last ? setPlaying(false) : go(frame + 1)), 80);
    return () => window.clearTimeout(timer);
  });

  const counts = exact.data?.step === shownStep ? exact.data.counts : null;
  const numDead = dead.reduce((sum, cell) => sum + cell, 0);
  const finding = `Step ${shownStep} (${formatCount(meta.tokens[frame])} tokens): ${numDead === 0 ? "every expert got tokens" : `${numDead} of ${rows * columns} experts got no token`}.`;
  const ratioName = (log2: number): string => (log2 === 0 ? "fair" : log2 > 0 ? `${2 ** log2}${TIMES}` : `1/${2 ** -log2}${TIMES}`);
  return (
    <>
      <p className="finding">{finding}</p>
      <Heatmap
        rows={rows}
        columns={columns}
        values={values}
        dead={dead}
        scale={scale}
        rowLabels={meta.layers.map((layer) => `L${layer}`)}
        columnTicks={Array.from({ length: columns }, (_, column) => column)
          .filter((column) => columns <= 32 || column % Math.ceil(columns / 16) === 0)
          .map((column) => ({ column, label: order === "load" ? String(column + 1) : `e${column}` }))}
        columnName={order === "load" ? "rank of the expert by load, in each layer on its own" : "expert"}
        summary={`Load of each expert relative to its fair share. ${finding}`}
        cellHeight={Math.max(12, Math.min(30, Math.round(260 / rows)))}
        describe={(row, column) => {
          const cell = row * columns + column;
          const expert = ids[cell] ?? column;
          const count = counts?.[row]?.[expert];
          const share = dead[cell] === 1 ? "dead, no token" : `${formatNumber(2 ** (values[cell] ?? Number.NaN), 3)}${TIMES} the fair share`;
          const fair = (counts?.[row] ?? []).reduce((sum, item) => sum + item, 0) / columns;
          return `layer ${meta.layers[row] ?? row}, expert ${expert}: ${share}${count === undefined ? "" : ` (${count} tokens, fair is ${formatNumber(fair, 5)})`}`;
        }}
      />
      <div className="scrubber">
        <button type="button" className="button" onClick={() => (frame >= last && !playing ? (go(0), setPlaying(true)) : setPlaying(!playing))} aria-label={playing ? "Pause" : "Play"}>
          {playing ? "Pause" : "Play"}
        </button>
        <label className="scrubber-slider">
          <span className="visually-hidden">Step</span>
          <input type="range" min={0} max={last} step={1} value={frame} onChange={(event) => go(Number(event.target.value))} aria-valuetext={`step ${shownStep}`} />
        </label>
        <output>step {shownStep}</output>
        {spikes.length > 0 && (
          <span className="scrubber-spikes">
            <button type="button" className="button" onClick={() => jump(-1)}>
              Previous spike
            </button>
            <button type="button" className="button" onClick={() => jump(1)}>
              Next spike
            </button>
          </span>
        )}
      </div>
      <ColourBar
        scale={scale}
        name="load over fair share (log2)"
        ticks={[-limit, -limit / 2, 0, limit / 2, limit].filter((value) => Number.isInteger(value)).map((value) => ({ value, label: ratioName(value) }))}
        dead
      />
    </>
  );
}
