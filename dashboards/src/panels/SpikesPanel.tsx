/** Loss and gradient spikes: how large, and the router before, at and after. Order in time, never cause. */

import { Fragment, useState } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { formatCount, formatNumber, formatRange, formatSigned } from "../lib/format";
import { NONE, RIGHT } from "../lib/glyphs";
import { checkpointBefore } from "../lib/fork";
import { metricName } from "./metrics";
import { SpikeDetails } from "./SpikeDetails";

type Spike = Schemas["Spike"];

/** The layer with the largest MaxVio at the spike, with its MaxVio before, at and after. */
export function layerAtSpike(spike: Spike): { readonly layer: number; readonly before: number | null; readonly at: number | null; readonly after: number | null } | null {
  const worst = [...spike.router_at].sort((a, b) => (b.max_violation ?? -1) - (a.max_violation ?? -1))[0];
  if (worst === undefined) return null;
  const of = (layers: readonly Schemas["LayerHealth"][] | null): number | null => layers?.find((candidate) => candidate.layer === worst.layer)?.max_violation ?? null;
  return { layer: worst.layer, before: of(spike.router_before), at: worst.max_violation, after: of(spike.router_after) };
}

function stepsInWords(count: number): string {
  return count === 1 ? "after 1 step" : `after ${count} steps`;
}

interface Props {
  readonly answer: Answer<Schemas["SpikeList"]>;
  /** Shows the experts at the step. */
  readonly onStep: (step: number) => void;
  /** Shows the curves around the step. */
  readonly onAround: (step: number) => void;
  /** That a fork could begin from. */
  readonly checkpoints: readonly Schemas["CheckpointRead"][];
  readonly onFork: (checkpointId: string) => void;
}

function ForkBefore({ spike, checkpoints, onFork }: Pick<Props, "checkpoints" | "onFork"> & { readonly spike: Spike }): React.JSX.Element {
  const before = checkpointBefore(checkpoints, spike.step);
  if (before === null) {
    return (
      <button type="button" className="quiet-button" disabled title="No checkpoint from before this spike is kept; keep_checkpoints in a spec says which are">
        Fork before
      </button>
    );
  }
  return (
    <button type="button" className="quiet-button" title={`Go on from the checkpoint of step ${before.step}, with other values`} onClick={() => onFork(before.id)}>
      Fork from step {before.step}
    </button>
  );
}

export function SpikesPanel({ answer, onStep, onAround, checkpoints, onFork }: Props): React.JSX.Element {
  const [open, setOpen] = useState<string | null>(null);
  return (
    <Panel
      title="Spikes"
      hint="Steps whose loss or gradient norm stood out of the steps before. The router's state is given in order of time; what came first need not be the cause."
      className="wide"
      answer={answer}
      height={120}
      empty={(list) => (list.items.length === 0 ? "No spike by the current rule (over 6 robust standard deviations above the last 128 steps)." : null)}
    >
      {(list) => (
        <div className="table-wrap">
          <table>
            <caption className="visually-hidden">Spikes</caption>
            <thead>
              <tr>
                <th scope="col">#</th>
                <th scope="col" className="num">Step</th>
                <th scope="col" className="num">Tokens</th>
                <th scope="col">Metric</th>
                <th scope="col" className="num" title="Value minus the median of the steps before">Size</th>
                <th scope="col" className="num" title="Robust standard deviations above the median of the steps before">z</th>
                <th scope="col" className="num">Recovered</th>
                <th scope="col" className="num">Learning rate</th>
                <th scope="col" className="num">Gradient norm</th>
                <th scope="col">MaxVio before {RIGHT} at {RIGHT} after</th>
                <th scope="col" className="num">Samples</th>
                <th scope="col"><span className="visually-hidden">Show</span></th>
              </tr>
            </thead>
            <tbody>
              {list.items.map((spike, index) => {
                const layer = layerAtSpike(spike);
                const key = `${spike.run_id} ${spike.step} ${spike.metric}`;
                return (
                  <Fragment key={key}>
                  <tr className={open === key ? "opened" : ""}>
                    <td>{index + 1}</td>
                    <td className="num">{spike.step}</td>
                    <td className="num">{formatCount(spike.tokens)}</td>
                    <td>{metricName(spike.metric)}</td>
                    <td className="num">{formatSigned(spike.size)}</td>
                    <td className="num">{formatNumber(spike.z, 3)}</td>
                    <td className="num">{spike.recovered_step === null ? "not yet" : stepsInWords(spike.recovered_step - spike.step)}</td>
                    <td className="num">{formatNumber(spike.lr, 3)}</td>
                    <td className="num">{formatNumber(spike.grad_norm, 3)}</td>
                    <td>
                      {layer === null ? (
                        <span className="muted">dense</span>
                      ) : (
                        <>
                          L{layer.layer}: {formatNumber(layer.before, 3)} {RIGHT} {formatNumber(layer.at, 3)} {RIGHT} {layer.after === null ? NONE : formatNumber(layer.after, 3)}
                        </>
                      )}
                    </td>
                    <td className="num" title={spike.document_ids.join("\n")}>{formatRange(spike.sample_indices[0], spike.sample_indices[1])}</td>
                    <td className="nowrap">
                      <button type="button" className="quiet-button" onClick={() => onAround(spike.step)}>
                        Curves
                      </button>{" "}
                      <button type="button" className="quiet-button" onClick={() => onStep(spike.step)}>
                        Experts
                      </button>{" "}
                      <ForkBefore spike={spike} checkpoints={checkpoints} onFork={onFork} />{" "}
                      <button type="button" className="quiet-button" aria-expanded={open === key} onClick={() => setOpen(open === key ? null : key)}>
                        Details
                      </button>
                    </td>
                  </tr>
                  {open === key && (
                    <tr className="details-row">
                      <td colSpan={12}>
                        <SpikeDetails spike={spike} />
                      </td>
                    </tr>
                  )}
                  </Fragment>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}
