/** `/t/:id`: is this trial healthy; if not, when, where, and what came first? */

import { useEffect, useMemo, useRef, useState } from "react";
import { useLocation } from "wouter";

import { isLive, useAlarms, useCatalog, useCheckpoints, useEvaluations, useExperiment, useForks, useLoadHistory, useRouter, useRuns, useSeries, useSpikes, useTrial } from "../api/queries";
import type { XMark } from "../charts/marks";
import { Facts, type Fact } from "../components/Facts";
import { LiveChip } from "../components/LiveChip";
import { Empty, Failed, Frame } from "../components/Panel";
import { Crumbs } from "../components/Shell";
import { causeInWords, StateBadge } from "../components/StateBadge";
import { numberRange, oneOf, useAddress, wholeNumber, writeRange } from "../lib/address";
import { useNow } from "../lib/clock";
import { formatCount, formatDuration, formatFixed, formatNumber, formatPercent, formatSetting } from "../lib/format";
import { NONE } from "../lib/glyphs";
import { useKeys } from "../lib/keys";
import { compareAddress, toggleSelected, useSelection } from "../lib/selection";
import { shortNames } from "../lib/configuration";
import { endMark, trialName } from "../lib/trials";
import { alarmBars, alarmSpans, watchedInWords } from "../panels/alarms";
import { AlarmsPanel } from "../panels/AlarmsPanel";
import { TrialCommands } from "../panels/Commands";
import { ConfigPanel } from "../panels/ConfigPanel";
import { CurvesPanel, type Curve } from "../panels/CurvesPanel";
import { DomainsPanel } from "../panels/DomainsPanel";
import { ExpertsPanel } from "../panels/ExpertsPanel";
import { ForkDialog } from "../panels/ForkDialog";
import { RungsPanel, RunsPanel } from "../panels/HistoryPanels";
import { LayerTimePanel, routerMetric } from "../panels/LayerTimePanel";
import { LineagePanel, Origins } from "../panels/LineagePanel";
import { catalogueOf, ROUTER_METRICS } from "../panels/metrics";
import { ProbePanel } from "../panels/ProbePanel";
import { probeKeys, probesOf } from "../panels/probes";
import { SpecializationPanel } from "../panels/SpecializationPanel";
import { SpikesPanel } from "../panels/SpikesPanel";
import type { Schemas } from "../api/client";

const ROUTER_KEYS = ROUTER_METRICS.map((metric) => metric.key);

// What is shown on each side of a spike: its recovery and what led to it, at a width where single steps can be told.
const AROUND_STEPS = 60;

function factsOf(trial: Schemas["TrialDetail"]): Fact[] {
  const { progress, summary } = trial;
  const violation = summary?.worst_max_violation ?? progress?.max_violation ?? null;
  const layer = summary?.worst_max_violation_layer ?? progress?.max_violation_layer ?? null;
  const dead = summary?.max_dead_fraction ?? progress?.dead_fraction ?? null;
  const share = progress === null ? null : progress.step / progress.num_steps;
  const dense = trial.layer_kinds.length > 0 && !trial.layer_kinds.includes("moe");
  const router: Fact[] = dense
    ? [{ name: "Router", value: "none", note: "dense model" }]
    : [
        { name: "MaxVio, worst layer", value: formatNumber(violation, 3), note: layer === null ? undefined : `layer ${layer}` },
        { name: "Dead experts, worst layer", value: dead === 0 ? "none" : formatPercent(dead) },
      ];
  return [
    { name: "Trained", value: share === null ? NONE : formatPercent(share), note: progress === null ? undefined : `step ${progress.step} of ${progress.num_steps}, ${formatCount(progress.tokens)} tokens` },
    { name: "Training loss", value: formatFixed(summary?.final_loss ?? progress?.loss, 3), note: "nats/token" },
    { name: "Held-out", value: formatFixed(trial.objective ?? progress?.bits_per_byte, 3), note: "bits/byte" },
    ...router,
    { name: "Spikes", value: summary?.num_spikes ?? progress?.num_spikes ?? NONE },
    { name: "Speed", value: formatCount(summary?.tokens_per_s ?? progress?.tokens_per_s), note: "tokens/s" },
    ...(summary === null ? [] : [{ name: "Parameters", value: formatCount(summary.active_parameters), note: `active, ${formatCount(summary.total_parameters)} in all` }]),
    ...(isLive(trial.state) ? [{ name: "Time left", value: progress?.eta_s == null ? NONE : formatDuration(Math.round(progress.eta_s)) }] : summary === null ? [] : [{ name: "Took", value: formatDuration(summary.training_duration_s), note: "training" }]),
  ];
}

export function Trial({ id }: { readonly id: string }): React.JSX.Element {
  const [params, change] = useAddress();
  const selection = useSelection();
  const now = useNow(1_000);
  const trial = useTrial(id);
  const experiment = useExperiment(trial.data?.experiment_id);
  const live = isLive(trial.data?.state);
  const isMoe = trial.data?.layer_kinds.includes("moe") ?? false;
  const zoom = numberRange(params.get("xr"));
  const step = wholeNumber(params.get("step"), 1);
  const metric = routerMetric(params.get("metric"));

  const catalogue = catalogueOf(useCatalog().data);
  const series = useSeries({ trials: [id], keys: ["train/loss", "optimizer/lr", "optimizer/grad_norm"], x: "step", points: 500, ...(zoom === null ? {} : { x_range: [zoom[0], zoom[1]] }) }, live);
  const router = useRouter(id, ROUTER_KEYS, live, isMoe);
  const history = useLoadHistory(id, live, isMoe);
  const spikes = useSpikes(id, live);
  const evaluations = useEvaluations(id, live);
  const runs = useRuns(id, live);
  const alarms = useAlarms(id, live);
  const checkpoints = useCheckpoints(id, live);
  const forks = useForks(id);
  const probes = probesOf(catalogue);
  const probed = useSeries({ trials: isMoe && probes.length > 0 ? [id] : [], keys: probeKeys(probes), x: "step", layers: "each", points: 300 }, live);
  const [, navigate] = useLocation();
  const [forking, setForking] = useState<string | null>(null);

  const marks = useMemo<XMark[]>(() => (spikes.data?.items ?? []).map((spike, index) => ({ x: spike.step, label: String(index + 1) })), [spikes.data]);
  const spans = useMemo(() => alarmBars(alarmSpans(alarms.data?.items ?? []), "step"), [alarms.data]);
  const curves = useMemo<Curve[]>(() => (trial.data === undefined ? [] : [{ trialId: id, label: trialName(trial.data), slot: 0, end: endMark(trial.data.state) }]), [id, trial.data]);
  const onZoom = (range: readonly [number, number] | null): void => change({ xr: writeRange(range) });
  const onStep = (to: number | null): void => change({ step: to === null ? null : String(to) });
  const curvesPlace = useRef<HTMLDivElement>(null);
  const onAround = (to: number): void => {
    change({ xr: writeRange([Math.max(0, to - AROUND_STEPS), to + AROUND_STEPS]), step: String(to) });
    curvesPlace.current?.scrollIntoView({ block: "start" });
  };
  useKeys({ " ": (event) => event.target === document.body && (event.preventDefault(), toggleSelected(id)), Escape: () => onZoom(null) });
  const title = trial.data === undefined ? null : trialName(trial.data);
  useEffect(() => {
    document.title = title === null ? "evenload" : `${title} - ${experiment.data?.name ?? "evenload"}`;
  }, [title, experiment.data?.name]);

  if (trial.data === undefined) {
    return trial.error === null ? <div className="skeleton page-skeleton" aria-busy="true" /> : <Failed error={trial.error} onRetry={() => void trial.refetch()} />;
  }
  const { data } = trial;
  const searched = Object.keys(data.params);
  const names = shortNames(searched);
  const shared = { catalogue, curves, answer: series, zoom, onZoom, syncKey: `trial-${id}`, marks, spans, legend: false } as const;
  const noSteps = live ? "No step has been recorded yet." : "This trial recorded no step.";
  return (
    <>
      <Crumbs crumbs={[{ name: "Experiments", href: "/" }, { name: experiment.data?.name ?? data.experiment_id, href: `/e/${data.experiment_id}` }, { name: trialName(data) }]} />
      <div className="page-head">
        <h1>{trialName(data)}</h1>
        <StateBadge state={data.state} cause={data.cause ?? null} reason={data.reason} />
        <LiveChip live={live} answer={trial} />
        <span className="grow" />
        <button type="button" className="button" aria-pressed={selection.includes(id)} onClick={() => toggleSelected(id)}>
          {selection.includes(id) ? "Selected for comparison" : "Select for comparison"}
        </button>
        {selection.length > 1 && selection.includes(id) && (
          <a className="button primary" href={compareAddress(selection)}>
            Compare {selection.length}
          </a>
        )}
        <TrialCommands
          trials={[{ ...data, name: trialName(data) }]}
          experimentState={experiment.data?.state ?? "completed"}
          onDone={(outcomes) => {
            const made = outcomes[0]?.trial_id ?? null;
            if (made !== null && made !== id) navigate(`/t/${made}`);
          }}
        />
        {data.mlflow_run_url !== null && (
          <a className="button" href={data.mlflow_run_url} target="_blank" rel="noreferrer">
            MLflow
          </a>
        )}
      </div>
      {data.reason !== "" && (
        <p className={`notice ${data.state === "failed" || data.state === "infeasible" ? "bad" : ""}`}>
          {data.cause !== null && <strong>{causeInWords(data.cause)}: </strong>}
          {data.reason}
        </p>
      )}
      <Origins trial={data} fork={experiment.data?.fork ?? null} />
      {searched.length > 0 && (
        <ul className="params" aria-label="Parameters set by the search">
          {searched.map((path) => (
            <li key={path} title={path}>
              {names.get(path)} <strong>{formatSetting(data.params[path])}</strong>
            </li>
          ))}
        </ul>
      )}
      <Facts facts={factsOf(data)} />
      <div className="grid-loss" ref={curvesPlace}>
        <CurvesPanel {...shared} title="Training loss" metric="train/loss" warmup={0.08} height={320} emptyText={noSteps} />
        <div className="stack">
          <CurvesPanel {...shared} title="Gradient norm" metric="optimizer/grad_norm" warmup={0.08} height={150} emptyText={noSteps} className="compact" compact />
          <CurvesPanel {...shared} title="Learning rate" metric="optimizer/lr" height={150} emptyText={noSteps} className="compact" compact />
        </div>
      </div>
      {isMoe ? (
        <>
          <LayerTimePanel
            answer={router}
            layerKinds={data.layer_kinds}
            catalogue={catalogue}
            metricKey={metric.key}
            onMetric={(key) => change({ metric: key === ROUTER_KEYS[0] ? null : key })}
            step={step}
            onStep={onStep}
          />
          <ExpertsPanel
            trialId={id}
            answer={history}
            live={live}
            step={step}
            onStep={onStep}
            order={oneOf(["index", "load"], params.get("order"), "index")}
            onOrder={(order) => change({ order: order === "index" ? null : order })}
            spikes={spikes.data?.items ?? []}
          />
        </>
      ) : (
        <Frame title="Router health" className="wide">
          <Empty>{data.config === null ? "This trial never had a model." : "This model is dense: it has no router and no experts."}</Empty>
        </Frame>
      )}
      {isMoe && (
        <div className="grid-7-6">
          <ProbePanel
            answer={probed}
            trial={data}
            even={router.data?.top_k != null && router.data.num_experts !== null ? router.data.top_k / router.data.num_experts : null}
            probes={probes}
            catalogue={catalogue}
            probeKey={params.get("probe")}
            onProbe={(key) => change({ probe: key === probes[0]?.key ? null : key })}
            spans={spans}
            emptyText={live ? "Measured at each evaluation; the first value of churn takes two." : "No evaluation of this trial had a probe (loop.probe_tokens)."}
          />
          <SpecializationPanel trial={data} catalogue={catalogue} />
        </div>
      )}
      <AlarmsPanel answer={alarms} watched={watchedInWords(data.config as Readonly<Record<string, unknown>> | null)} onAround={onAround} />
      <SpikesPanel answer={spikes} onStep={onStep} onAround={onAround} checkpoints={checkpoints.data?.items ?? []} onFork={setForking} />
      <div className="grid-2">
        <DomainsPanel answer={evaluations} />
        <div className="stack">
          <LineagePanel checkpoints={checkpoints} forks={forks} onFork={setForking} />
          <RungsPanel rungs={data.rungs} />
          <RunsPanel answer={runs} now={now} />
        </div>
      </div>
      <ConfigPanel config={data.config as Readonly<Record<string, unknown>> | null} searched={searched} fingerprint={data.config_fingerprint} />
      {forking !== null && checkpoints.data !== undefined && (
        <ForkDialog config={data.config} checkpoints={checkpoints.data} checkpointId={forking} onClose={() => setForking(null)} onForked={(experimentId) => navigate(`/e/${experimentId}`)} />
      )}
    </>
  );
}
