/** How the routing of the same held-out tokens changes, and what the experts come to stand for, beside what chance gives. */

import { useMemo } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { lineOf } from "../charts/lines";
import { LineChart, type ChartLine } from "../charts/LineChart";
import type { XSpan } from "../charts/marks";
import { CONTROL_SLOTS } from "../charts/palette";
import { Empty, Panel } from "../components/Panel";
import { Switch } from "../components/Switch";
import { formatNumber, formatPercent, formatRange, shortCount, unitSuffix } from "../lib/format";
import { definition, type Catalogue } from "./metrics";
import { acrossLayers, byLayer, newestByLayer, SATURATION, withSaturation, type Probe } from "./probes";

interface Props {
  readonly answer: Answer<Schemas["Series"]>;
  readonly trial: Schemas["TrialDetail"];
  /** What even routing gives of saturation: top_k / num_experts. */
  readonly even: number | null;
  readonly probes: readonly Probe[];
  readonly catalogue: Catalogue;
  readonly probeKey: string | null;
  readonly onProbe: (key: string) => void;
  readonly spans: readonly XSpan[];
  readonly emptyText: string;
}

// More lines than this cannot be told apart: then the highest, the median and the lowest layer.
const MOST_LAYERS = 6;

function linesOf(series: Schemas["Series"], probe: Probe): ChartLine[] {
  const { grid } = series;
  const layers = byLayer(series.items, probe.key);
  const line = (key: string, label: string, slot: number, last: readonly (number | null)[]): ChartLine => ({ key, label, slot, ...lineOf({ grid, last }, true) });
  const measured =
    layers.length <= MOST_LAYERS
      ? layers.map((item, slot) => line(`L${item.layer ?? slot}`, `L${item.layer ?? slot}`, slot, item.last))
      : (["highest", "median", "lowest"] as const).map((reduce, slot) => line(reduce, `${reduce} of ${layers.length} layers`, slot, acrossLayers(layers, reduce)));
  const shuffled = byLayer(series.items, probe.shuffled);
  const uniform = byLayer(series.items, probe.uniform);
  const controls = [
    ...(shuffled.length > 0 ? [line("shuffled", shuffled.length === 1 ? "labels shuffled" : "labels shuffled, median layer", CONTROL_SLOTS.shuffled, acrossLayers(shuffled, "median"))] : []),
    ...(uniform.length > 0 ? [line("uniform", "even at random", CONTROL_SLOTS.uniform, acrossLayers(uniform, "median"))] : []),
  ];
  return [...measured, ...controls].filter(({ y }) => y.some((value) => value !== null));
}

function finding(series: Schemas["Series"], probe: Probe, unit: string | undefined): string {
  const newest = newestByLayer(byLayer(series.items, probe.key));
  const write = (value: number): string => (unit === "1" && probe.key !== "probe/max_violation" ? formatPercent(value, value < 0.1 ? 1 : 0) : `${formatNumber(value, 3)}${unitSuffix(unit)}`);
  const [first] = newest;
  if (first === undefined) return "Not measured yet.";
  const low = newest.reduce((least, one) => (one.value < least.value ? one : least), first);
  const high = newest.reduce((most, one) => (one.value > most.value ? one : most), first);
  const chance = [
    { name: "labels shuffled", of: newestByLayer(byLayer(series.items, probe.shuffled)) },
    { name: "even at random", of: newestByLayer(byLayer(series.items, probe.uniform)) },
  ].flatMap(({ name, of }) => {
    if (of.length === 0) return [];
    const values = of.map(({ value }) => value);
    const [least, most] = [write(Math.min(...values)), write(Math.max(...values))];
    return [`${name} ${least === most ? least : `${least} to ${most}`}`];
  });
  const said = low === high ? `L${low.layer} ${write(low.value)}` : `${write(low.value)} (L${low.layer}) to ${write(high.value)} (L${high.layer})`;
  return `Last measured: ${said}${chance.length > 0 ? `; by chance: ${chance.join(", ")}` : ""}.`;
}

export function ProbePanel(props: Props): React.JSX.Element {
  const { answer, probes, catalogue } = props;
  const probe = probes.find((candidate) => candidate.key === props.probeKey) ?? probes[0];
  const layers = props.trial.layer_kinds.flatMap((kind, layer) => (kind === "moe" ? [layer] : []));
  const complete = (series: Schemas["Series"]): Schemas["Series"] => withSaturation(series, props.trial.summary?.router_saturation ?? [], layers, props.even);
  return (
    <Panel
      title="Routing of the probe set"
      hint={probe === undefined ? undefined : `${definition(probe.key, catalogue)} Measured on the same held-out windows at every evaluation.`}
      answer={answer}
      height={330}
      empty={(series) => (probe === undefined || series.items.length === 0 ? props.emptyText : null)}
    >
      {(series) =>
        probe !== undefined && (
          <>
            <Switch label="Probe" options={probes.map(({ key, name }) => ({ value: key, name, title: definition(key, catalogue) }))} value={probe.key} onChange={props.onProbe} />
            <Probed {...props} series={complete(series)} probe={probe} />
          </>
        )
      }
    </Panel>
  );
}

function Probed({ series, probe, catalogue, spans }: Props & { readonly series: Schemas["Series"]; readonly probe: Probe }): React.JSX.Element {
  const lines = useMemo(() => linesOf(series, probe), [series, probe]);
  const unit = catalogue.get(probe.key)?.unit;
  const said = finding(series, probe, unit);
  const steps = series.grid.length;
  if (lines.every(({ slot }) => slot < 0)) {
    return <Empty>{probe.key === SATURATION ? "Known when a run has trained its whole budget: each evaluation is compared with the last one." : "Not measured yet: it takes another evaluation."}</Empty>;
  }
  return (
    <>
      <p className="finding">{said}</p>
      <LineChart
        lines={lines}
        xName="step"
        yName={`${probe.name}${unitSuffix(unit)}`}
        formatX={shortCount}
        points
        spans={spans}
        height={250}
        summary={`${probe.name} of the probe set at ${steps} evaluations, steps ${formatRange(series.grid[0] ?? 0, series.grid[steps - 1] ?? 0)}. ${said}`}
      />
    </>
  );
}
