/** What the pages ask the API, as hooks. Live things are asked again every 2 s, others once. */

import { keepPreviousData, useQueries, useQuery, type UseQueryResult } from "@tanstack/react-query";

import { get, getBytes, post, type ApiError, type Schemas } from "./client";
import { parseLoadHistory, type LoadHistory } from "./loadHistory";
import { every, isLive, LIVE_MS, LIVE_SERIES_MS, SLOWEST_MS, while_, type Poll } from "./polling";

export { isLive } from "./polling";

export type Answer<T> = UseQueryResult<T, ApiError>;

/** Units and descriptions of every metric. */
export function useCatalog(): Answer<Schemas["Catalog"]> {
  return useQuery({ queryKey: ["catalog"], queryFn: ({ signal }) => get("/v1/catalog", { signal }), staleTime: Infinity });
}

export function useExperiments(cursor: string | null): Answer<Schemas["ExperimentPage"]> {
  return useQuery({
    queryKey: ["experiments", cursor],
    queryFn: ({ signal }) => get("/v1/experiments", { query: { limit: 25, cursor }, signal }),
    placeholderData: keepPreviousData,
    // A new experiment may be submitted at any time.
    refetchInterval: (query) => every(query.state.data?.items.some((item) => isLive(item.state)) ? LIVE_MS : 5 * LIVE_MS)(query),
  });
}

export function useExperiment(id: string | undefined): Answer<Schemas["ExperimentDetail"]> {
  return useQuery({
    queryKey: ["experiment", id],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}", { path: { experiment_id: id ?? "" }, signal }),
    enabled: id !== undefined,
    refetchInterval: (query) => (query.state.data && !isLive(query.state.data.state) ? false : every(LIVE_MS)(query)),
  });
}

/** Every trial of the experiment, in order of number. */
export function useTrials(experimentId: string, live: boolean): Answer<Schemas["TrialRead"][]> {
  return useQuery({
    queryKey: ["trials", experimentId],
    queryFn: async ({ signal }) => {
      const trials: Schemas["TrialRead"][] = [];
      let cursor: string | null = null;
      do {
        const page: Schemas["TrialPage"] = await get("/v1/experiments/{experiment_id}/trials", {
          path: { experiment_id: experimentId },
          query: { limit: 500, cursor },
          signal,
        });
        trials.push(...page.items);
        cursor = page.next_cursor;
      } while (cursor !== null);
      return trials;
    },
    ...while_(live, LIVE_MS),
  });
}

export function useComparison(experimentId: string, live: boolean): Answer<Schemas["Comparison"]> {
  return useQuery({
    queryKey: ["comparison", experimentId, live],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}/comparison", { path: { experiment_id: experimentId }, signal }),
    placeholderData: keepPreviousData,
    staleTime: live ? 0 : Infinity,
    ...while_(live, LIVE_SERIES_MS),
  });
}

export function useTrial(id: string): Answer<Schemas["TrialDetail"]> {
  return useQuery(trialOf(id));
}

function trialOf(id: string) {
  return {
    queryKey: ["trial", id],
    queryFn: ({ signal }: { signal: AbortSignal }) => get("/v1/trials/{trial_id}", { path: { trial_id: id }, signal }),
    refetchInterval: (query: Poll & { state: { data: Schemas["TrialDetail"] | undefined } }) =>
      query.state.data && !isLive(query.state.data.state) ? (false as const) : every(LIVE_MS)(query),
  };
}

/** Several trials, in the order asked for. */
export function useTrialDetails(ids: readonly string[]): Answer<Schemas["TrialDetail"]>[] {
  return useQueries({ queries: ids.map(trialOf) });
}

export function useRuns(trialId: string, live: boolean): Answer<Schemas["RunList"]> {
  return useQuery({
    queryKey: ["runs", trialId],
    queryFn: ({ signal }) => get("/v1/trials/{trial_id}/runs", { path: { trial_id: trialId }, signal }),
    ...while_(live, LIVE_MS),
  });
}

export type SeriesQuestion = Pick<Schemas["SeriesRequest"], "trials" | "keys" | "x"> & Partial<Schemas["SeriesRequest"]>;

/** Curves on a common grid. With no trial there is nothing to ask. */
export function useSeries(question: SeriesQuestion, live: boolean): Answer<Schemas["Series"]> {
  return useQuery({
    queryKey: ["series", question],
    queryFn: ({ signal }) => post("/v1/series:query", { body: { runs: [], points: 500, layers: "worst", ...question }, signal }),
    enabled: (question.trials?.length ?? 0) > 0,
    placeholderData: keepPreviousData,
    ...while_(live, LIVE_SERIES_MS),
  });
}

export function useRouter(trialId: string, keys: readonly string[], live: boolean, enabled: boolean): Answer<Schemas["RouterGrid"]> {
  return useQuery({
    queryKey: ["router", trialId, keys],
    queryFn: ({ signal }) =>
      get("/v1/trials/{trial_id}/router", { path: { trial_id: trialId }, query: { keys: [...keys], x: "step", points: 200 }, signal }),
    enabled,
    placeholderData: keepPreviousData,
    ...while_(live, LIVE_SERIES_MS),
  });
}

function loadsOf(trialId: string, step: number | null, live: boolean) {
  return {
    queryKey: ["loads", trialId, step],
    queryFn: ({ signal }: { signal: AbortSignal }) => get("/v1/trials/{trial_id}/router/loads", { path: { trial_id: trialId }, query: { step }, signal }),
    placeholderData: keepPreviousData,
    ...while_(live && step === null, LIVE_SERIES_MS),
  };
}

/** Exact loads at a step; null asks for the newest. */
export function useLoads(trialId: string, step: number | null, live: boolean, enabled: boolean): Answer<Schemas["RouterLoads"]> {
  return useQuery({ ...loadsOf(trialId, step, live), enabled });
}

/** The newest loads of several trials. */
export function useNewestLoads(trials: readonly { readonly id: string; readonly state: string }[]): Answer<Schemas["RouterLoads"]>[] {
  return useQueries({ queries: trials.map(({ id, state }) => loadsOf(id, null, isLive(state))) });
}

export function useLoadHistory(trialId: string, live: boolean, enabled: boolean): Answer<LoadHistory> {
  return useQuery({
    queryKey: ["load-history", trialId],
    queryFn: async ({ signal }) =>
      parseLoadHistory(await getBytes("/v1/trials/{trial_id}/router/load-history", { path: { trial_id: trialId }, query: { frames: 300 }, signal })),
    enabled,
    structuralSharing: false,
    ...while_(live, 2 * LIVE_SERIES_MS),
  });
}

export function useSpikes(trialId: string, live: boolean): Answer<Schemas["SpikeList"]> {
  return useQuery({
    queryKey: ["spikes", trialId],
    queryFn: ({ signal }) => get("/v1/trials/{trial_id}/spikes", { path: { trial_id: trialId }, signal }),
    ...while_(live, LIVE_SERIES_MS),
  });
}

function evaluationsOf(trialId: string, live: boolean) {
  return {
    queryKey: ["evaluations", trialId],
    queryFn: ({ signal }: { signal: AbortSignal }) => get("/v1/trials/{trial_id}/evaluations", { path: { trial_id: trialId }, signal }),
    ...while_(live, LIVE_SERIES_MS),
  };
}

export function useEvaluations(trialId: string, live: boolean): Answer<Schemas["EvaluationList"]> {
  return useQuery(evaluationsOf(trialId, live));
}

/** The evaluations of several trials, in their order. */
export function useEvaluationLists(trials: readonly { readonly id: string; readonly state: string }[]): Answer<Schemas["EvaluationList"]>[] {
  return useQueries({ queries: trials.map(({ id, state }) => evaluationsOf(id, isLive(state))) });
}

/** The alarms that the rules of a trial's configuration raised and cleared. */
export function useAlarms(trialId: string, live: boolean): Answer<Schemas["AlarmList"]> {
  return useQuery({
    queryKey: ["alarms", trialId],
    queryFn: ({ signal }) => get("/v1/trials/{trial_id}/alarms", { path: { trial_id: trialId }, signal }),
    ...while_(live, LIVE_SERIES_MS),
  });
}

/** The alarms of all trials of an experiment. */
export function useExperimentAlarms(experimentId: string, live: boolean): Answer<Schemas["AlarmList"]> {
  return useQuery({
    queryKey: ["experiment-alarms", experimentId],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}/alarms", { path: { experiment_id: experimentId }, signal }),
    ...while_(live, 2 * LIVE_SERIES_MS),
  });
}

/** The checkpoints that a trial keeps, and which values a fork from one may change. */
export function useCheckpoints(trialId: string, live: boolean): Answer<Schemas["CheckpointList"]> {
  return useQuery({
    queryKey: ["checkpoints", trialId],
    queryFn: ({ signal }) => get("/v1/trials/{trial_id}/checkpoints", { path: { trial_id: trialId }, signal }),
    ...while_(live, 2 * LIVE_SERIES_MS),
  });
}

/** The experiments that go on from a checkpoint of the trial. They may begin at any time, also after its end. */
export function useForks(trialId: string): Answer<Schemas["ForkList"]> {
  return useQuery({
    queryKey: ["forks", trialId],
    queryFn: ({ signal }) => get("/v1/trials/{trial_id}/forks", { path: { trial_id: trialId }, signal }),
    refetchInterval: (query) => every(query.state.data?.items.some((fork) => isLive(fork.state)) ? 2 * LIVE_SERIES_MS : SLOWEST_MS)(query),
  });
}

/** Documents in the batches of spikes of several trials; of all experiments with `everywhere`. */
export function useImplicated(experimentId: string, everywhere: boolean, live: boolean): Answer<Schemas["ImplicatedDocuments"]> {
  return useQuery({
    queryKey: ["implicated", experimentId, everywhere],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}/implicated-documents", { path: { experiment_id: experimentId }, query: { everywhere }, signal }),
    placeholderData: keepPreviousData,
    ...while_(live, 4 * LIVE_SERIES_MS),
  });
}

/** What was asked of an experiment; asked often while something is pending, for it changes what else is shown. */
export function useCommands(experimentId: string, live: boolean): Answer<Schemas["CommandList"]> {
  return useQuery({
    queryKey: ["commands", experimentId],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}/commands", { path: { experiment_id: experimentId }, signal }),
    ...while_(live, LIVE_MS),
  });
}

/** Who waits for a place, and for what. */
export function useQueue(): Answer<Schemas["QueueRead"]> {
  return useQuery({ queryKey: ["queue"], queryFn: ({ signal }) => get("/v1/queue", { signal }), refetchInterval: every(2 * LIVE_MS) });
}

/** What an experiment's trials show; asked again soon where a newer one is being worked out. */
export function useAnalysis(experimentId: string, live: boolean, enabled: boolean): Answer<Schemas["AnalysisRead"]> {
  return useQuery({
    queryKey: ["analysis", experimentId, live],
    queryFn: ({ signal }) => get("/v1/experiments/{experiment_id}/analysis", { path: { experiment_id: experimentId }, signal }),
    placeholderData: keepPreviousData,
    enabled,
    refetchInterval: (query) => (query.state.data?.state === "current" && !live ? false : every(2 * LIVE_SERIES_MS)(query)),
  });
}
