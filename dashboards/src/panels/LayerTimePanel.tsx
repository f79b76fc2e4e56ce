/** When and where did the router go wrong: one statistic over layers and time, and the worst layer by name. */

import { useMemo } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { sequentialScale } from "../charts/colourTable";
import { ColourBar, Heatmap } from "../charts/Heatmap";
import { lineOf } from "../charts/lines";
import { LineChart, type ChartLine } from "../charts/LineChart";
import { nearestIndex } from "../charts/ranges";
import { Panel } from "../components/Panel";
import { Switch } from "../components/Switch";
import { formatNumber, shortCount, unitSuffix } from "../lib/format";
import { definition, ROUTER_METRICS, type Catalogue, type RouterMetric } from "./metrics";
import { layerEnvelope, layerMatrix, worstLayer } from "./routerLayers";

interface Props {
  readonly answer: Answer<Schemas["RouterGrid"]>;
  readonly layerKinds: readonly string[];
  readonly catalogue: Catalogue;
  readonly metricKey: string;
  readonly onMetric: (key: string) => void;
  readonly step: number | null;
  readonly onStep: (step: number) => void;
}

/** The metric of the address, or MaxVio. */
export function routerMetric(key: string | null): RouterMetric {
  const metric = ROUTER_METRICS.find((candidate) => candidate.key === key) ?? ROUTER_METRICS[0];
  if (metric === undefined) throw new Error("ROUTER_METRICS is empty");
  return metric;
}

function bounds(metric: RouterMetric, grid: Schemas["RouterGrid"], values: Float64Array): readonly [number, number] {
  const known = [...values].filter(Number.isFinite);
  const low = known.reduce((a, b) => Math.min(a, b), Infinity);
  const high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) return [0, 1];
  const most = grid.num_experts === null ? high : Math.log(grid.num_experts);
  if (metric.key === "router/token_entropy") return [0, most];
  if (metric.key === "router/load_entropy") return [Math.min(low, most - 0.05), most];
  if (metric.key === "router/dead_fraction") return [0, Math.max(high, 0.05)];
  return metric.key === "router/max_violation" ? [0, Math.max(high, 0.1)] : [low, high];
}

export function LayerTimePanel(props: Props): React.JSX.Element {
  const metric = routerMetric(props.metricKey);
  return (
    <Panel
      title="Router health: layer over time"
      hint={definition(metric.key, props.catalogue)}
      className="wide"
      answer={props.answer}
      height={300}
      empty={(grid) => (grid.grid.length === 0 ? "No router telemetry yet. The first rows come with the first flush, a few seconds after the start." : null)}
      actions={<Switch label="Statistic" options={ROUTER_METRICS.map(({ key, name }) => ({ value: key, name }))} value={metric.key} onChange={props.onMetric} />}
    >
      {(grid) => <LayerTime {...props} grid={grid} metric={metric} />}
    </Panel>
  );
}

function LayerTime({ grid, metric, layerKinds, catalogue, step, onStep }: Props & { readonly grid: Schemas["RouterGrid"]; readonly metric: RouterMetric }): React.JSX.Element {
  const values = useMemo(() => layerMatrix(grid, metric), [grid, metric]);
  const scale = useMemo(() => sequentialScale(...bounds(metric, grid, values)), [grid, metric, values]);
  const worst = useMemo(() => worstLayer(grid, metric), [grid, metric]);
  const lines = useMemo<ChartLine[]>(() => {
    const envelope = layerEnvelope(grid, metric);
    return [
      { key: "worst", label: `worst layer (${metric.worst === "max" ? "highest" : "lowest"})`, slot: 0, ...lineOf({ grid: grid.grid, last: envelope.worst }) },
      { key: "median", label: "median layer", slot: 1, ...lineOf({ grid: grid.grid, last: envelope.median }) },
    ];
  }, [grid, metric]);
  const unit = catalogue.get(metric.key)?.unit;
  const columns = grid.grid.length;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * (columns - 1))).filter((column, index, all) => all.indexOf(column) === index);
  const labels = Array.from({ length: grid.num_layers }, (_, layer) => (layerKinds[layer] === "dense" ? `L${layer} dense` : `L${layer}`));
  const named = worst === null ? "No layer is known yet." : `Worst layer over the last tenth: L${worst.layer}, ${metric.name} ${formatNumber(worst.value, 3)}${unitSuffix(unit)}.`;
  return (
    <div className="split">
      <div>
        <p className="finding">{named}</p>
        <Heatmap
          rows={grid.num_layers}
          columns={columns}
          values={values}
          scale={scale}
          rowLabels={labels}
          strongRow={worst?.layer ?? null}
          columnTicks={ticks.map((column) => ({ column, label: shortCount(Math.round(grid.grid[column] ?? 0)) }))}
          columnName="step"
          markedColumn={step === null ? null : nearestIndex(grid.grid, step)}
          summary={`${metric.name} by layer and step. ${named}`}
          describe={(row, column) => {
            const value = values[row * columns + column] ?? Number.NaN;
            const place = `layer ${row}, step ${Math.round(grid.grid[column] ?? 0)}`;
            if (layerKinds[row] === "dense") return `layer ${row} is dense: it has no router`;
            return Number.isNaN(value) ? `${place}: not recorded` : `${place}: ${metric.name} ${formatNumber(value)}${unitSuffix(unit)} (click: experts at this step)`;
          }}
          onPick={(_, column) => onStep(Math.max(1, Math.round(grid.grid[column] ?? 1)))}
        />
        <ColourBar
          scale={scale}
          name={`${metric.name}${unitSuffix(unit)}, ${metric.worst === "max" ? "highest" : "lowest"} in each bucket`}
          ticks={[scale.low, (scale.low + scale.high) / 2, scale.high].map((value) => ({ value, label: formatNumber(value, 3) }))}
        />
      </div>
      <LineChart lines={lines} xName="step" yName={`${metric.name}${unitSuffix(unit)}`} formatX={shortCount} height={220} summary={`Worst and median layer of ${metric.name} over steps. ${named}`} />
    </div>
  );
}
