/** Chosen trials side by side: settings, held-out text by domain, size, router health, load profiles. */

import { Fragment, useMemo, type ReactNode } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Swatch } from "../charts/Legend";
import { LineChart, type ChartLine } from "../charts/LineChart";
import { sortedProfile } from "../charts/loads";
import { Empty, Frame } from "../components/Panel";
import { differences, SECTION, shortNames } from "../lib/configuration";
import { formatCount, formatFixed, formatNumber, formatPercent, formatSetting, formatSigned } from "../lib/format";
import { DELTA, NONE, STAR, TIMES } from "../lib/glyphs";
import { domainProgress, domainTitle } from "./DomainsPanel";

/** One chosen trial. */
export interface Compared {
  readonly trial: Schemas["TrialDetail"];
  readonly name: string;
  readonly slot: number;
  readonly end: "cut" | "failed" | "open" | undefined;
}

interface Props {
  readonly trials: readonly Compared[];
  readonly baselineId: string;
}

function Heads({ trials, baselineId }: Props): React.JSX.Element {
  return (
    <>
      {trials.map(({ trial, name, slot }) => (
        <th key={trial.id} scope="col" className="num" title={name}>
          <Swatch slot={slot} /> <span className="trial-name">{name}</span>
          {trial.id === baselineId && ` ${STAR}`}
        </th>
      ))}
    </>
  );
}

interface GridProps extends Props {
  readonly caption: string;
  readonly first: string;
  readonly className?: string;
  readonly rows: readonly { readonly name: ReactNode; readonly title?: string; readonly key: string; readonly cells: readonly ReactNode[]; readonly total?: boolean }[];
}

function SideBySide({ caption, first, rows, className = "", ...props }: GridProps): React.JSX.Element {
  return (
    <div className="table-wrap">
      <table className={`side-by-side ${className}`}>
        <caption className="visually-hidden">{caption}</caption>
        <thead>
          <tr>
            <th scope="col">{first}</th>
            <Heads {...props} />
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.key} className={row.total === true ? "total" : ""}>
              <th scope="row" title={row.title}>
                {row.name}
              </th>
              {row.cells.map((cell, index) => (
                <td key={props.trials[index]?.trial.id ?? index} className="num">
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** A value that may break after a bracket or a comma rather than within a name. */
function Setting({ text }: { readonly text: string }): React.JSX.Element {
  return (
    <>
      {text.split(/(?<=[(,=])/).map((part, index) => (
        <Fragment key={index}>
          {part}
          <wbr />
        </Fragment>
      ))}
    </>
  );
}

/** Only the settings on which the trials differ. */
export function SettingsPanel(props: Props): React.JSX.Element {
  const rows = useMemo(() => differences(props.trials.map(({ trial }) => trial.config)), [props.trials]);
  const names = shortNames(rows.map((row) => row.path));
  return (
    <Frame title="What differs" hint="Settings that are equal in all chosen trials are left out.">
      {rows.length === 0 ? (
        <Empty>{props.trials.length < 2 ? "Choose a second trial to see what differs." : "Nothing: these trials have the same configuration."}</Empty>
      ) : (
        <SideBySide
          {...props}
          caption="Settings that differ"
          first="Setting"
          rows={rows.map(({ path, values }) => ({ key: path, name: names.get(path) ?? path, title: path, cells: values.map((value) => (value === SECTION ? <span className="muted">set</span> : <Setting text={formatSetting(value)} />)) }))}
          className="wrapping"
        />
      )}
    </Frame>
  );
}

/** Smallest of the known values; null of none or of a single one, where "best" says nothing. */
function bestOf(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  return known.length < 2 ? null : Math.min(...known);
}

/** Held-out bits per byte of each domain, best marked, difference to the chosen baseline. */
export function DomainTable(props: Props & { readonly evaluations: readonly Answer<Schemas["EvaluationList"]>[] }): React.JSX.Element {
  const lists = props.evaluations.map((answer) => answer.data);
  const domains = [...new Set(lists.flatMap((list) => list?.domains ?? []))].sort((a, b) => Number(a === "all") - Number(b === "all"));
  const measured = lists.map((list) => new Map(domainProgress(list?.items ?? [], list?.domains ?? []).map((row) => [row.domain, row.final])));
  const baseline = props.trials.findIndex(({ trial }) => trial.id === props.baselineId);
  const partial = props.trials.some(({ trial }) => trial.state !== "completed");
  return (
    <Frame
      title="Bits per byte by domain"
      hint={`Held-out, lower is better; best in bold; ${DELTA} to the baseline ${STAR}. ${partial ? "At each trial's last evaluation: those that did not complete saw fewer tokens, which is no equal comparison." : "All trained their whole budget."}`}
    >
      {domains.length === 0 ? (
        <Empty>{props.evaluations.some((answer) => answer.isPending) ? "Loading the evaluations." : "None of these trials has been evaluated yet."}</Empty>
      ) : (
        <SideBySide
          {...props}
          caption="Bits per byte by domain"
          first="Domain"
          rows={domains.map((domain) => {
            const values = measured.map((scores) => scores.get(domain) ?? null);
            const best = bestOf(values);
            const reference = values[baseline] ?? null;
            return {
              key: domain,
              name: domainTitle(domain),
              total: domain === "all",
              cells: values.map((value, index) => (
                <>
                  <span className={value !== null && value === best ? "best" : ""}>{formatFixed(value, 3)}</span>
                  {value !== null && reference !== null && index !== baseline && (
                    <span className={`delta ${Math.abs(value - reference) < 5e-4 ? "" : value < reference ? "gain" : "loss"}`}>{formatSigned(value - reference)}</span>
                  )}
                </>
              )),
            };
          })}
        />
      )}
    </Frame>
  );
}

function WorstLayer({ value, layer }: { readonly value: number | null; readonly layer: number | null }): React.JSX.Element {
  return (
    <>
      {formatNumber(value, 3)} {layer !== null && <span className="sub-inline">L{layer}</span>}
    </>
  );
}

function Dead({ fraction }: { readonly fraction: number | null }): React.JSX.Element {
  if (fraction === null || fraction === 0) return <>{fraction === null ? NONE : "none"}</>;
  return <span className="tag tone-dead">{formatPercent(fraction)}</span>;
}

/** Size, compute and the router's health at the end. */
export function HealthTable(props: Props): React.JSX.Element {
  const summaries = props.trials.map(({ trial }) => trial.summary);
  const dense = props.trials.map(({ trial }) => trial.layer_kinds.length > 0 && !trial.layer_kinds.includes("moe"));
  // A trial that was stopped has no summary of its end, but its last progress.
  const router = (read: (summary: Schemas["RunSummary"]) => ReactNode, newest: (progress: Schemas["Progress"]) => ReactNode): ReactNode[] =>
    props.trials.map(({ trial }, index) => {
      if (dense[index] === true) return <span className="muted">dense</span>;
      if (trial.summary !== null) return read(trial.summary);
      return trial.progress === null ? NONE : newest(trial.progress);
    });
  const plain = (read: (summary: Schemas["RunSummary"]) => ReactNode): ReactNode[] => summaries.map((summary) => (summary === null ? NONE : read(summary)));
  return (
    <Frame title="Size and router health" hint="Worst layer of each trial, averaged over the last tenth of its steps (of a trial stopped early: at its last step). A mean over layers would hide a collapsed one.">
      <SideBySide
        {...props}
        caption="Size and router health"
        first="Figure"
        rows={[
          { key: "tokens", name: "training tokens", cells: props.trials.map(({ trial }) => formatCount(trial.progress?.tokens ?? trial.objective_tokens)) },
          { key: "active", name: "active parameters", cells: plain((summary) => formatCount(summary.active_parameters)) },
          { key: "total", name: "total parameters", cells: plain((summary) => formatCount(summary.total_parameters)) },
          { key: "flops", name: "FLOPs per token", title: "training: forward and backward", cells: plain((summary) => formatCount(summary.flops_per_token)) },
          { key: "speed", name: "tokens/s", cells: props.trials.map(({ trial }) => formatCount(trial.summary?.tokens_per_s ?? trial.progress?.tokens_per_s)) },
          { key: "spikes", name: "spikes", cells: props.trials.map(({ trial }) => trial.summary?.num_spikes ?? trial.progress?.num_spikes ?? NONE) },
          {
            key: "maxvio",
            name: "MaxVio, worst layer",
            cells: router(
              (summary) => <WorstLayer value={summary.worst_max_violation} layer={summary.worst_max_violation_layer} />,
              (progress) => <WorstLayer value={progress.max_violation} layer={progress.max_violation_layer} />,
            ),
          },
          { key: "token-entropy", name: "token entropy, lowest (nats)", cells: router((summary) => formatFixed(summary.min_token_entropy, 3), (progress) => formatFixed(progress.token_entropy, 3)) },
          { key: "load-entropy", name: "load entropy, lowest (nats)", cells: router((summary) => formatFixed(summary.min_load_entropy, 3), () => NONE) },
          {
            key: "dead",
            name: "dead experts, worst layer",
            cells: router(
              (summary) => <Dead fraction={summary.max_dead_fraction} />,
              (progress) => <Dead fraction={progress.dead_fraction} />,
            ),
          },
        ]}
      />
    </Frame>
  );
}

interface ProfilesProps {
  readonly trials: readonly Compared[];
  /** By trial id; dense trials have none. */
  readonly loads: ReadonlyMap<string, Answer<Schemas["RouterLoads"]>>;
}

/** Loads of each layer in falling order, one line per trial. */
export function LoadProfiles({ trials, loads }: ProfilesProps): React.JSX.Element {
  const moe = trials.flatMap((compared) => {
    const data = loads.get(compared.trial.id)?.data;
    return data === undefined || data.layers.length === 0 ? [] : [{ ...compared, data }];
  });
  const layers = [...new Set(moe.flatMap(({ data }) => data.layers))].sort((a, b) => a - b);
  return (
    <Frame
      title="Sorted load profiles"
      className="wide"
      hint="Load over the fair share at the newest step, experts in falling order of load. Expert ids of independent runs are not comparable, so expert 3 of one trial is not expert 3 of another: only the shape is compared. Flat at 1 is even."
    >
      {layers.length === 0 ? (
        <Empty>{[...loads.values()].some((answer) => answer.isPending) ? "Loading the loads." : "None of these trials has a router with recorded loads."}</Empty>
      ) : (
        <div className="small-multiples">
          {layers.map((layer) => {
            const lines: ChartLine[] = moe.flatMap(({ trial, name, slot, data }) => {
              const counts = data.counts[data.layers.indexOf(layer)];
              if (counts === undefined) return [];
              return [{ key: trial.id, label: name, slot, x: counts.map((_, rank) => rank + 1), y: sortedProfile(counts) }];
            });
            return (
              <figure key={layer}>
                <figcaption>Layer {layer}</figcaption>
                <LineChart
                  lines={lines}
                  xName="rank of the expert"
                  yName={`load / fair (${TIMES})`}
                  formatX={(x) => (Number.isInteger(x) ? String(x) : "")}
                  height={170}
                  points
                  legend={false}
                  summary={`Sorted expert loads of layer ${layer} for ${lines.length} trials.`}
                />
              </figure>
            );
          })}
        </div>
      )}
    </Frame>
  );
}
