/** What the search found: best so far, which parameters mattered, and the objective along each of them. */

import { useMemo } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { LineChart, type ChartLine } from "../charts/LineChart";
import { Scatter, type ScatterPoint } from "../charts/Scatter";
import { Panel } from "../components/Panel";
import { Switch } from "../components/Switch";
import { shortNames } from "../lib/configuration";
import { formatFixed, formatNumber, formatPercent, formatSetting, sentence, shortCount } from "../lib/format";
import { spaceParameters } from "../lib/space";
import { sliceAxis } from "./analysis";
import { metricName } from "./metrics";
import { objectiveName, objectiveUnit } from "./objective";

type Read = Schemas["AnalysisRead"];

interface Props {
  readonly answer: Answer<Read>;
}

function stale(read: Read | undefined): string {
  return read?.state === "stale" ? " Of earlier trials; a newer one is being worked out." : "";
}

interface BestProps extends Props {
  readonly objective: Schemas["Objective"];
}

function BestSoFarPanel({ answer, objective }: BestProps): React.JSX.Element {
  const steps = answer.data?.analysis?.best_so_far;
  const lines = useMemo<ChartLine[]>(() => (steps === undefined || steps.length === 0 ? [] : [{ key: "best", label: "best so far", slot: 0, x: steps.map(({ tokens }) => tokens), y: steps.map((step) => step.objective) }]), [steps]);
  return (
    <Panel
      title="Best so far"
      hint={answer.data?.analysis == null ? undefined : `By ${objectiveName(objective)}. ${sentence(answer.data.analysis.best_basis)}${stale(answer.data)}`}
      answer={answer}
      height={280}
      empty={() => (lines.length === 0 ? "No trial of the search has completed yet." : null)}
    >
      {() => <LineChart lines={lines} xName="training tokens of all trials" yName={objectiveUnit(objective)} formatX={shortCount} points stepped legend={false} height={250} summary={`Best objective so far, ${lines[0]?.y.length ?? 0} improvements.`} />}
    </Panel>
  );
}

interface ImportanceProps extends Props {
  readonly method: string;
  readonly onMethod: (method: "ped_anova" | "fanova") => void;
}

const METHODS = [
  { value: "ped_anova", name: "PED-ANOVA", title: "Of being among the best trials" },
  { value: "fanova", name: "fANOVA", title: "Of the variance over the whole space" },
] as const;

function ImportancePanel({ answer, method, onMethod }: ImportanceProps): React.JSX.Element {
  const chosen = METHODS.find(({ value }) => value === method)?.value ?? "ped_anova";
  return (
    <Panel
      title="Importance of the parameters"
      hint={`Shares of what the parameters in a list explain; the line is the range over resamples of the trials. Where lines overlap, the order says little.${stale(answer.data)}`}
      answer={answer}
      height={280}
      empty={(read) => ((read.analysis?.importance ?? []).length === 0 ? "There is no parameter to compare." : null)}
      actions={<Switch label="Method" options={METHODS} value={chosen} onChange={onMethod} />}
    >
      {({ analysis }) => {
        const found = (analysis?.importance ?? []).filter((one) => one.method === chosen);
        // One and the same thing may stand in the way of every list: it is said once.
        const problems = [...new Set(found.flatMap(({ problem }) => (problem === null ? [] : [sentence(problem)])))];
        return (
          <>
            {found.filter(({ parameters }) => parameters.length > 0).map((one) => (
              <ImportanceList key={`${one.objective ?? ""} ${one.condition ?? ""}`} found={one} aim={one.objective === null ? "reaching the Pareto front" : metricName(analysis?.objectives[one.objective]?.metric ?? "the objective")} />
            ))}
            {problems.map((problem) => (
              <p key={problem} className="muted">
                {problem}
              </p>
            ))}
          </>
        );
      }}
    </Panel>
  );
}

function ImportanceList({ found, aim }: { readonly found: Schemas["Importance"]; readonly aim: string }): React.JSX.Element {
  const names = shortNames(found.parameters.map(({ name }) => name));
  return (
    <div className="importance">
      <h3>
        {aim}
        {found.condition !== null && <span className="muted">, where {found.condition}</span>}
      </h3>
      <ul>
        {found.parameters.map(({ name, importance, low, high }) => (
          <li key={name} title={name}>
            <span className="importance-name">{names.get(name) ?? name}</span>
            <span className="importance-track" aria-hidden="true">
              <span className="importance-bar" style={{ width: `${importance * 100}%` }} />
              <span className="importance-range" style={{ left: `${low * 100}%`, width: `${Math.max(0, high - low) * 100}%` }} />
            </span>
            <span className="num">{formatPercent(importance)}</span>
          </li>
        ))}
      </ul>
      <p className="sub">{sentence(found.basis)}</p>
    </div>
  );
}

interface SlicesProps extends BestProps {
  readonly space: Readonly<Record<string, unknown>>;
  readonly strong: string | null;
  readonly onHover: (trialId: string | null) => void;
  readonly onOpen: (trialId: string) => void;
}

const MOST_SLICES = 9;

function SlicesPanel({ answer, objective, space, strong, onHover, onOpen }: SlicesProps): React.JSX.Element {
  return (
    <Panel
      title="Slices"
      hint={`Each trial's objective along one parameter; filled: completed, hollow: at its last rung. ${sentence(answer.data?.analysis?.slices.basis ?? "")}${stale(answer.data)}`}
      className="wide"
      answer={answer}
      height={260}
      empty={(read) => (Object.keys(read.analysis?.slices.params ?? {}).length === 0 || read.analysis?.slices.trial_ids.length === 0 ? "No trial of the search has a result yet." : null)}
    >
      {({ analysis }) => {
        if (analysis === null) return null;
        const { slices } = analysis;
        const paths = Object.keys(slices.params);
        const names = shortNames(paths);
        const logarithmic = new Set(spaceParameters(space).filter(({ log }) => log).map(({ name }) => name));
        return (
          <div className="small-multiples">
            {paths.slice(0, MOST_SLICES).map((path) => {
              const axis = sliceAxis(slices.params[path] ?? [], logarithmic.has(path));
              const points: ScatterPoint[] = slices.trial_ids.flatMap((key, index) => {
                const x = axis.places[index] ?? null;
                const y = slices.objective[index] ?? null;
                return x === null || y === null ? [] : [{ key, x, y, label: `trial ${slices.numbers[index] ?? "?"}`, slot: 0, front: slices.states[index] === "completed" }];
              });
              return (
                <figure key={path} title={path}>
                  <figcaption>{names.get(path) ?? path}</figcaption>
                  {points.length === 0 ? (
                    <p className="muted">No trial has it.</p>
                  ) : (
                    <Scatter
                      points={points}
                      xName={names.get(path) ?? path}
                      yName={objectiveUnit(objective)}
                      xBetter={null}
                      xLog={axis.log}
                      {...(axis.names === null ? {} : { xNames: axis.names })}
                      height={210}
                      summary={`Objective of ${points.length} trials along ${path}.`}
                      describe={(point) => `${point.label}: ${names.get(path) ?? path} ${axis.names?.[point.x] ?? formatNumber(point.x, 3)}, ${formatFixed(point.y, 3)}`}
                      strong={strong}
                      onHover={onHover}
                      onOpen={onOpen}
                    />
                  )}
                </figure>
              );
            })}
            {paths.length > MOST_SLICES && <p className="muted">{paths.slice(MOST_SLICES).map((path) => formatSetting(path)).join(", ")}: not drawn.</p>}
          </div>
        );
      }}
    </Panel>
  );
}

/** All three; one panel that says so while there is no analysis. */
export function AnalysisPanels(props: SlicesProps & ImportanceProps): React.JSX.Element {
  const { answer } = props;
  if (answer.data?.analysis == null || answer.data.analysis.slices.trial_ids.length === 0) {
    const nothing = answer.data?.analysis == null ? "Best so far, importance of the parameters and slices are being worked out, beside the API." : "No trial of the search has a result yet.";
    return (
      <Panel title="What the search found" className="wide" answer={answer} height={90} empty={(read) => read.problem ?? nothing}>
        {() => null}
      </Panel>
    );
  }
  return (
    <>
      <div className="grid-2">
        <BestSoFarPanel {...props} />
        <ImportancePanel {...props} />
      </div>
      <SlicesPanel {...props} />
    </>
  );
}
