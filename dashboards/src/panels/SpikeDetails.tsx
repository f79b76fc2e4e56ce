/** Everything that was recorded of one spike: what moved before, the router layer by layer, the gradient, the documents. */

import type { Schemas } from "../api/client";
import { Facts, type Fact } from "../components/Facts";
import { formatNumber, formatRange } from "../lib/format";
import { NONE, RIGHT } from "../lib/glyphs";
import { metricName } from "./metrics";

type Spike = Schemas["Spike"];
type Health = Schemas["LayerHealth"];

const MOMENTS = ["before", "at", "peak", "after"] as const;
export type Moment = (typeof MOMENTS)[number];

/** One layer's router at the four moments; null where it was not recorded. */
export interface LayerMoments {
  readonly layer: number;
  readonly health: Readonly<Record<Moment, Health | null>>;
}

/** The layers of a spike, first to last. */
export function layerMoments(spike: Pick<Spike, "router_before" | "router_at" | "router_peak" | "router_after">): LayerMoments[] {
  const of = (layers: readonly Health[] | null | undefined, layer: number): Health | null => layers?.find((one) => one.layer === layer) ?? null;
  return spike.router_at.map(({ layer }) => ({
    layer,
    health: { before: of(spike.router_before, layer), at: of(spike.router_at, layer), peak: of(spike.router_peak, layer), after: of(spike.router_after, layer) },
  }));
}

/** What moved before the spike, in a sentence each, with the layers of one metric at one step together. */
export function movesInWords(spike: Pick<Spike, "moved" | "metric">): string[] {
  const groups = new Map<string, { metric: string; layers: number[]; stepsBefore: number }>();
  for (const { metric, layer, steps_before: stepsBefore } of spike.moved ?? []) {
    const key = `${metric} ${stepsBefore}`;
    const group = groups.get(key) ?? { metric, layers: [], stepsBefore };
    if (layer !== null) group.layers.push(layer);
    groups.set(key, group);
  }
  return [...groups.values()].map(({ metric, layers, stepsBefore }) => {
    const where = layers.length === 0 ? "" : ` of ${layers.map((layer) => `L${layer}`).join(", ")}`;
    const when = stepsBefore === 0 ? "in the same step as" : `${stepsBefore} ${stepsBefore === 1 ? "step" : "steps"} before`;
    return `${metricName(metric)}${where} moved ${when} the ${metricName(spike.metric)}`;
  });
}

function facts(spike: Spike): Fact[] {
  const roles = Object.entries(spike.grad_norms ?? {});
  return [
    { name: metricName(spike.metric), value: formatNumber(spike.value), note: `${formatNumber(spike.baseline)} before` },
    ...(spike.peak_step == null ? [] : [{ name: "Peak", value: formatNumber(spike.peak_value), note: spike.peak_step === spike.step ? "in the same step" : `step ${spike.peak_step}` }]),
    ...roles.map(([role, norm]) => ({ name: `gradient, ${role}`, value: formatNumber(norm, 3), note: "norm" })),
    { name: "Checkpoint before", value: spike.checkpoint_step == null ? NONE : spike.checkpoint_step, note: spike.checkpoint_step == null ? undefined : "step" },
    ...(spike.rewound_to == null ? [] : [{ name: "Rewound to", value: spike.rewound_to, note: "step, by loop.on_spike" }]),
  ];
}

function Layers({ spike }: { readonly spike: Spike }): React.JSX.Element {
  const layers = layerMoments(spike);
  const moved = new Set((spike.moved ?? []).map(({ layer, metric }) => `${layer ?? ""} ${metric}`));
  return (
    <div className="table-wrap">
      <table>
        <caption className="visually-hidden">Router around the spike</caption>
        <thead>
          <tr>
            <th scope="col" rowSpan={2}>Layer</th>
            <th scope="colgroup" colSpan={4} className="group">MaxVio</th>
            <th scope="colgroup" colSpan={4} className="group">Token entropy (nats)</th>
          </tr>
          <tr>
            {(["max_violation", "token_entropy"] as const).flatMap((metric) =>
              MOMENTS.map((moment, index) => (
                <th key={`${metric} ${moment}`} scope="col" className={index === 0 ? "num first-of-group" : "num"}>
                  {moment}
                </th>
              )),
            )}
          </tr>
        </thead>
        <tbody>
          {layers.map(({ layer, health }) => (
            <tr key={layer}>
              <th scope="row">L{layer}</th>
              {(["max_violation", "token_entropy"] as const).flatMap((metric) =>
                MOMENTS.map((moment, index) => (
                  <td key={`${metric} ${moment}`} className={`num ${index === 0 ? "first-of-group" : ""} ${moved.has(`${layer} router/${metric}`) ? "best" : ""}`}>
                    {formatNumber(health[moment]?.[metric], 3)}
                  </td>
                )),
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function SpikeDetails({ spike }: { readonly spike: Spike }): React.JSX.Element {
  const moves = movesInWords(spike);
  const previews = spike.previews ?? [];
  const others = spike.document_ids.filter((id) => !previews.some((preview) => preview.document_ids.includes(id)));
  return (
    <div className="spike-details">
      <Facts facts={facts(spike)} />
      <div className="split">
        <div className="stack-tight">
          <h3>What moved first</h3>
          {moves.length === 0 ? (
            <p className="muted">Nothing that is watched left its range in the 20 steps before. {spike.router_at.length === 0 ? "This model has no router." : ""}</p>
          ) : (
            <ol className="moves">
              {moves.map((move) => (
                <li key={move}>{move}</li>
              ))}
            </ol>
          )}
          <p className="muted">An order in time: what came first need not be the cause.</p>
        </div>
        {spike.router_at.length > 0 && <Layers spike={spike} />}
      </div>
      <div className="stack-tight">
        <h3>What the step was trained on</h3>
        <p className="muted">
          Samples {formatRange(spike.sample_indices[0], spike.sample_indices[1])}
          {previews.length > 0 ? `; the beginning of ${previews.length} of them:` : "."}
        </p>
        <ul className="previews">
          {previews.map((preview) => (
            <li key={preview.sample_index}>
              <span className="sub">
                sample {preview.sample_index} {RIGHT} {preview.document_ids.join(", ")}
              </span>
              <pre>{preview.text}</pre>
            </li>
          ))}
        </ul>
        {others.length > 0 && (
          <details className="plain-details">
            <summary>{others.length} more {others.length === 1 ? "document" : "documents"}</summary>
            <p className="mono document-ids">{others.join(", ")}</p>
          </details>
        )}
      </div>
    </div>
  );
}
