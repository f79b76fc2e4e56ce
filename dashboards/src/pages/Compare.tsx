/** `/compare?trials=`: which choice is better, by how much, at equal what? What is compared lives in the address. */

import { useEffect, useMemo, useState } from "react";
import { Link } from "wouter";

import { isLive, useCatalog, useEvaluationLists, useNewestLoads, useSeries, useTrialDetails } from "../api/queries";
import { Swatch } from "../charts/Legend";
import { Empty, Failed } from "../components/Panel";
import { Crumbs } from "../components/Shell";
import { StateBadge } from "../components/StateBadge";
import { Switch } from "../components/Switch";
import { idList, numberRange, oneOf, useAddress, writeRange } from "../lib/address";
import { STAR } from "../lib/glyphs";
import { setSelection } from "../lib/selection";
import { differingParameters, endMark, haveReplicas, trialLabel, trialName } from "../lib/trials";
import { CurvesPanel, type Curve } from "../panels/CurvesPanel";
import { DomainTable, HealthTable, LoadProfiles, SettingsPanel, type Compared } from "../panels/ComparePanels";
import { catalogueOf } from "../panels/metrics";

const MOST = 24;
const X_AXES = [
  { value: "tokens", name: "tokens", title: "Equal training tokens" },
  { value: "step", name: "steps", title: "Equal optimizer steps: misleads where batch sizes differ" },
  { value: "flops", name: "FLOPs", title: "Equal training compute of the active parameters" },
] as const;

function NothingChosen(): React.JSX.Element {
  return (
    <Empty>
      No trial is chosen. Open an <Link href="/">experiment</Link>, select trials in its table (Space), then press Compare (c). The address of this page then names them, so it can be shared.
    </Empty>
  );
}

export function Compare(): React.JSX.Element {
  const [params, change] = useAddress();
  const ids = useMemo(() => idList(params.get("trials")).slice(0, MOST), [params]);
  const [strong, setStrong] = useState<string | null>(null);
  const x = oneOf(["tokens", "step", "flops"] as const, params.get("x"), "tokens");
  const zoom = numberRange(params.get("xr"));
  const answers = useTrialDetails(ids);
  const catalogue = catalogueOf(useCatalog().data);
  const found = answers.flatMap((answer) => (answer.data === undefined ? [] : [answer.data]));
  // All at once: each trial that arrives later would ask for all the curves again.
  const pending = ids.length > 0 && answers.some((answer) => answer.isPending);
  const live = found.some((trial) => isLive(trial.state));
  const series = useSeries(
    { trials: pending ? [] : found.map((trial) => trial.id), keys: ["eval/bits_per_byte", "train/loss", "router/max_violation"], x, points: 300, layers: "worst", ...(zoom === null ? {} : { x_range: [zoom[0], zoom[1]] }) },
    live,
  );
  const evaluations = useEvaluationLists(found);
  const loads = useNewestLoads(found.filter((trial) => trial.layer_kinds.includes("moe")));
  const loadOf = new Map(found.filter((trial) => trial.layer_kinds.includes("moe")).flatMap((trial, index) => (loads[index] === undefined ? [] : [[trial.id, loads[index]] as const])));
  useEffect(() => {
    document.title = `Compare ${ids.length} trials - evenload`;
  }, [ids.length]);

  const parameters = differingParameters(found);
  const compared: Compared[] = found.map((trial, slot) => ({ trial, name: trialName(trial), slot, end: endMark(trial.state) }));
  const curves: Curve[] = compared.map(({ trial, name, slot, end }) => ({ trialId: trial.id, label: name, slot, end }));
  const baselineId = found.find((trial) => trial.id === params.get("base"))?.id ?? found.find((trial) => trial.kind === "baseline")?.id ?? found[0]?.id ?? "";
  const remove = (id: string): void => {
    const rest = ids.filter((other) => other !== id);
    setSelection(rest);
    change({ trials: rest.length === 0 ? null : rest.join(",") });
  };
  const onZoom = (range: readonly [number, number] | null): void => change({ xr: writeRange(range) });
  const failed = answers.flatMap((answer, index) => (answer.error === null || answer.data !== undefined ? [] : [{ id: ids[index] ?? "", error: answer.error }]));
  const shared = { answer: series, catalogue, curves, zoom, onZoom, syncKey: "compare", warmup: 0.12, strong } as const;
  return (
    <>
      <Crumbs crumbs={[{ name: "Experiments", href: "/" }, { name: "Compare" }]} />
      <div className="page-head">
        <h1>Compare {ids.length > 0 ? `${ids.length} ${ids.length === 1 ? "trial" : "trials"}` : "trials"}</h1>
        <span className="grow" />
        {ids.length > 0 && (
          <>
            <span className="muted">at equal</span>
            <Switch label="Horizontal axis" options={X_AXES} value={x} onChange={(next) => change({ x: next === "tokens" ? null : next, xr: null })} />
          </>
        )}
      </div>
      {ids.length === 0 && <NothingChosen />}
      {failed.map(({ id, error }) => (
        <div key={id}>
          <Failed error={error} />
          <button type="button" className="quiet-button" onClick={() => remove(id)}>
            Remove {id}
          </button>
        </div>
      ))}
      {pending && <div className="skeleton page-skeleton" aria-busy="true" />}
      {!pending && found.length > 0 && (
        <>
          <ul className="chosen-trials">
            {compared.map(({ trial, slot }) => (
              <li key={trial.id} onMouseEnter={() => setStrong(trial.id)} onMouseLeave={() => setStrong(null)}>
                <Swatch slot={slot} />
                <Link href={`/t/${trial.id}`}>{trialLabel(trial, parameters, 4)}</Link>
                <StateBadge state={trial.state} cause={trial.cause ?? null} reason={trial.reason} />
                <button type="button" className="quiet-button" aria-pressed={trial.id === baselineId} title="Take differences to this trial" onClick={() => change({ base: trial.id })}>
                  {STAR} {trial.id === baselineId ? "baseline" : "make baseline"}
                </button>
                <button type="button" className="quiet-button" aria-label={`Remove ${trialName(trial)}`} onClick={() => remove(trial.id)}>
                  Remove
                </button>
              </li>
            ))}
          </ul>
          <p className="notice">
            {haveReplicas(found.map((trial) => trial.config))
              ? "Some of these trials differ in nothing but their seed: a difference between others that is no larger than theirs says nothing."
              : "One seed per configuration: how much another seed would change these figures is unknown. Read small differences as no difference."}
          </p>
          <div className="grid-2">
            <CurvesPanel {...shared} title="Held-out bits per byte" hint="Mean over domains." metric="eval/bits_per_byte" domain="all" emptyText="No evaluation yet." height={280} />
            <CurvesPanel {...shared} title="Training loss" metric="train/loss" emptyText="No step yet." height={280} />
          </div>
          <div className="grid-7-6">
            <DomainTable trials={compared} baselineId={baselineId} evaluations={evaluations} />
            <SettingsPanel trials={compared} baselineId={baselineId} />
          </div>
          <div className="grid-2">
            <HealthTable trials={compared} baselineId={baselineId} />
            <CurvesPanel {...shared} title="MaxVio of the worst layer" warmup={0} metric="router/max_violation" emptyText="None of these trials has a router." height={300} />
          </div>
          <LoadProfiles trials={compared} loads={loadOf} />
        </>
      )}
    </>
  );
}
