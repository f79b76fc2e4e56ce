/** `/e/:id`: which trial wins, which setting made the difference, what did pruning cut? */

import { useEffect, useMemo, useState } from "react";
import { useLocation } from "wouter";

import { isLive, useAnalysis, useCatalog, useComparison, useCommands, useExperiment, useExperimentAlarms, useImplicated, useSeries, useTrials } from "../api/queries";
import { Facts } from "../components/Facts";
import { LiveChip } from "../components/LiveChip";
import { Failed, Panel } from "../components/Panel";
import { Crumbs } from "../components/Shell";
import { CountsBar, StateBadge } from "../components/StateBadge";
import { useAddress, wholeNumber } from "../lib/address";
import { formatCount, formatDuration, formatTime } from "../lib/format";
import { hasEnded } from "../lib/control";
import { ELLIPSIS, NONE } from "../lib/glyphs";
import { compareAddress, toggleSelected, useSelection } from "../lib/selection";
import { baselineSettings, differingParameters, endMark, trialLabel, trialName } from "../lib/trials";
import { alarmBars, alarmSpans, watchedInWords } from "../panels/alarms";
import { AlarmsPanel } from "../panels/AlarmsPanel";
import { CurvesPanel, type Curve } from "../panels/CurvesPanel";
import { AnalysisPanels } from "../panels/AnalysisPanels";
import { AddTrialDialog } from "../panels/AddTrialDialog";
import { ExperimentCommands, TrialCommands } from "../panels/Commands";
import { bestFacts } from "../panels/bestFacts";
import { CommandsPanel } from "../panels/CommandsPanel";
import { ExtendDialog } from "../panels/ExtendDialog";
import { ImplicatedPanel } from "../panels/ImplicatedPanel";
import { ForkedFrom } from "../panels/LineagePanel";
import { catalogueOf } from "../panels/metrics";
import { aimsOf } from "../panels/pareto";
import { ParetoPanel } from "../panels/ParetoPanel";
import { RankingPanel } from "../panels/RankingPanel";
import { TrialsTable, type TrialRow } from "../panels/TrialsTable";

// The API takes at most 100 trials in one question; more lines than that cannot be told apart anyway.
const MOST_CURVES = 100;

// With more alarms than this the bars of all trials would cover each other: then those of the trial pointed at.
const MOST_SPANS = 8;

export function Experiment({ id }: { readonly id: string }): React.JSX.Element {
  const [params, change] = useAddress();
  const [, navigate] = useLocation();
  const selection = useSelection();
  const [strong, setStrong] = useState<string | null>(null);
  const [asking, setAsking] = useState<"add" | "extend" | null>(null);
  const experiment = useExperiment(id);
  const live = isLive(experiment.data?.state);
  const trials = useTrials(id, live);
  const comparison = useComparison(id, live);
  const alarms = useExperimentAlarms(id, live);
  const everywhere = params.get("spikes") === "everywhere";
  const implicated = useImplicated(id, everywhere, live);
  const commands = useCommands(id, live);
  const searched = Object.keys((experiment.data?.spec.space ?? {}) as Readonly<Record<string, unknown>>).length > 0;
  const analysis = useAnalysis(id, live, searched);
  const catalogue = catalogueOf(useCatalog().data);
  const known = useMemo(() => trials.data ?? [], [trials.data]);
  const drawn = known.filter((trial) => trial.started_at_ms !== null).slice(0, MOST_CURVES);
  const series = useSeries({ trials: drawn.map((trial) => trial.id), keys: ["eval/bits_per_byte", "train/loss"], x: "tokens", points: 300 }, live);
  const parameters = useMemo(() => differingParameters(known), [known]);
  const curves = useMemo<Curve[]>(
    () => known.map((trial) => ({ trialId: trial.id, label: trialLabel(trial, parameters, 2), slot: trial.number, end: endMark(trial.state) })),
    [known, parameters],
  );
  const trialNames = useMemo(() => new Map(known.map((trial) => [trial.id, trialName(trial)])), [known]);
  const spans = useMemo(() => {
    const all = alarmSpans(alarms.data?.items ?? []);
    const bars = alarmBars(all, "tokens");
    return all.length <= MOST_SPANS && strong === null ? bars : bars.filter((_, index) => all[index]?.raised.trial_id === strong);
  }, [alarms.data, strong]);
  const name = experiment.data?.name;
  useEffect(() => {
    document.title = name === undefined ? "evenload" : `${name} - evenload`;
  }, [name]);

  if (experiment.data === undefined) {
    return experiment.error === null ? (
      <div className="skeleton page-skeleton" aria-busy="true" />
    ) : (
      <Failed error={experiment.error} onRetry={() => void experiment.refetch()} />
    );
  }
  const { data } = experiment;
  const space = data.spec.space as Readonly<Record<string, unknown>>;
  const aims = aimsOf(data.spec);
  const axis = (name: string, fallback: number): number => {
    const found = wholeNumber(params.get(name), 0);
    return found !== null && found < aims.length ? found : fallback;
  };
  const query = params.get("q") ?? "";
  const rows: TrialRow[] = known
    .map((trial) => ({ trial, compared: comparison.data?.rows.find((row) => row.trial_id === trial.id), slot: trial.number, fixed: baselineSettings(data.spec, trial) }))
    .filter(({ trial }) => `${trialName(trial)} ${trial.state} ${trial.cause ?? ""} ${JSON.stringify(trial.params)}`.toLowerCase().includes(query.toLowerCase()));
  const spent = known.reduce((sum, trial) => sum + (trial.progress?.tokens ?? 0), 0);
  const mine = selection.filter((chosen) => known.some((trial) => trial.id === chosen));
  const chosenTrials = known.filter((trial) => mine.includes(trial.id)).map((trial) => ({ ...trial, name: trialName(trial) }));
  return (
    <>
      <Crumbs crumbs={[{ name: "Experiments", href: "/" }, { name: data.name }]} />
      <div className="page-head">
        <h1>{data.name}</h1>
        <StateBadge state={data.state} reason={data.reason} />
        <LiveChip live={live} answer={experiment} />
        <span className="grow" />
        <ExperimentCommands experiments={[data]} />
        {data.state !== "cancelling" && (
          <button type="button" className="button" onClick={() => setAsking("add")}>
            Add a trial{ELLIPSIS}
          </button>
        )}
        {hasEnded(data.state) && (
          <button type="button" className="button" onClick={() => setAsking("extend")}>
            Extend{ELLIPSIS}
          </button>
        )}
        {data.mlflow_url !== null && (
          <a className="button" href={data.mlflow_url} target="_blank" rel="noreferrer">
            MLflow
          </a>
        )}
      </div>
      {data.description !== "" && <p className="lead">{data.description}</p>}
      {data.reason !== "" && <p className={data.state === "failed" ? "notice bad" : "notice"}>{data.reason}</p>}
      {data.fork !== null && <ForkedFrom fork={data.fork} />}
      {data.warnings.map((warning) => (
        <p key={warning} className="notice warn">
          {warning}
        </p>
      ))}
      <Facts
        facts={[
          { name: "Trials", value: <CountsBar counts={data.trial_counts} planned={data.num_trials} /> },
          ...bestFacts(data, comparison.data),
          { name: "Tokens trained", value: formatCount(spent), note: data.rung_tokens.length > 0 ? `rungs at ${data.rung_tokens.map(formatCount).join(", ")}` : undefined },
          { name: "Spikes", value: data.num_spikes },
          live
            ? { name: "Time left", value: data.eta_s === null ? NONE : `about ${formatDuration(Math.round(data.eta_s))}` }
            : { name: "Took", value: data.finished_at_ms === null ? NONE : formatDuration((data.finished_at_ms - data.created_at_ms) / 1000), note: formatTime(data.created_at_ms) },
        ]}
      />
      <div className="grid-2">
        <CurvesPanel
          title="Held-out bits per byte"
          hint="Mean over domains. A bar ends a pruned trial, a cross a failed one, a ring one that still runs."
          answer={series}
          metric="eval/bits_per_byte"
          domain="all"
          catalogue={catalogue}
          curves={curves}
          warmup={0.12}
          height={330}
          emptyText="No evaluation yet. The first comes before the first step of the first trial."
          strong={strong}
          legend={false}
          syncKey="experiment"
        />
        <RankingPanel answer={comparison} />
      </div>
      {aims.length > 1 && (
        <ParetoPanel
          answer={comparison}
          aims={aims}
          x={axis("px", 0)}
          y={axis("py", 1)}
          onAxes={(x, y) => change({ px: x === 0 ? null : String(x), py: y === 1 ? null : String(y) })}
          strong={strong}
          onHover={setStrong}
          onOpen={(trial) => navigate(`/t/${trial}`)}
        />
      )}
      <Panel
        title="Trials"
        hint={parameters.length > 1 ? `Only the ${parameters.length} parameters that differ are columns.` : undefined}
        className="wide"
        answer={trials}
        height={320}
        empty={(all) => (all.length === 0 ? "No trial has been proposed yet." : rows.length === 0 ? `No trial matches "${query}".` : null)}
        actions={
          <>
            <input type="search" placeholder="Search (/)" aria-label="Search trials" value={query} onChange={(event) => change({ q: event.target.value === "" ? null : event.target.value })} />
            <TrialCommands trials={chosenTrials} experimentState={data.state} bulk />
            <button type="button" className="button primary" disabled={mine.length === 0} onClick={() => navigate(compareAddress(mine))} title="Compare the selected trials (c)">
              Compare{mine.length > 0 ? ` ${mine.length}` : ""}
            </button>
          </>
        }
      >
        {() => (
          <TrialsTable
            rows={rows}
            parameters={parameters}
            objective={data.objective}
            baselineId={comparison.data?.baseline_trial_id ?? null}
            selection={selection}
            onToggle={toggleSelected}
            onOpen={(trial) => navigate(`/t/${trial}`)}
            onHover={setStrong}
          />
        )}
      </Panel>
      <CurvesPanel
        title="Training loss"
        answer={series}
        metric="train/loss"
        catalogue={catalogue}
        curves={curves}
        warmup={0.12}
        height={280}
        className="wide"
        emptyText="No step has been trained yet."
        spans={spans}
        strong={strong}
        syncKey="experiment"
      />
      {searched && (
        <AnalysisPanels
          answer={analysis}
          objective={data.objective}
          space={space}
          method={params.get("importance") ?? ""}
          onMethod={(method) => change({ importance: method === "ped_anova" ? null : method })}
          strong={strong}
          onHover={setStrong}
          onOpen={(trial) => navigate(`/t/${trial}`)}
        />
      )}
      <AlarmsPanel answer={alarms} watched={watchedInWords(data.spec.base as Readonly<Record<string, unknown>>)} trialNames={trialNames} onHover={setStrong} />
      <ImplicatedPanel answer={implicated} everywhere={everywhere} onEverywhere={(all) => change({ spikes: all ? "everywhere" : null })} />
      <CommandsPanel answer={commands} trialNames={trialNames} />
      {asking === "extend" && <ExtendDialog experiment={data} onClose={() => setAsking(null)} />}
      {asking === "add" && (
        <AddTrialDialog
          experimentId={id}
          space={space}
          params={data.best?.params ?? {}}
          onClose={() => setAsking(null)}
          onAdded={() => setAsking(null)}
        />
      )}
    </>
  );
}
