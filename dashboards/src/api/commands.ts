/** What the pages ask the API to do, as hooks. Answers go where the questions would read them. */

import { useMutation, useQueryClient, type UseMutationResult } from "@tanstack/react-query";

import type { ExperimentVerb, TrialVerb } from "../lib/control";
import { post, type ApiError, type Schemas } from "./client";

/** A fork as the dialog writes it. `key`: the same for the same wish, so that sending it twice makes one experiment. */
export interface ForkWish {
  readonly runId: string;
  readonly body: Schemas["ForkRequest"];
  readonly key: string;
}

/** Text that nobody has chosen before; also where the page came over plain HTTP, which has no `randomUUID`. */
export function freshKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** One verb for one or several experiments. `priority` goes with `prioritize`. */
export interface ExperimentWish {
  readonly ids: readonly string[];
  readonly verb: ExperimentVerb | "prioritize";
  readonly priority?: number;
}

type Outcomes = Schemas["BulkAnswers"]["items"];

function useRefreshed(): () => Promise<void> {
  const client = useQueryClient();
  // A command may change the experiment, its trials, and who waits behind them.
  return async () => {
    await Promise.all(["experiments", "experiment", "trials", "trial", "commands", "queue"].map((key) => client.invalidateQueries({ queryKey: [key] })));
  };
}

/** Pauses, resumes, cancels, kills or prioritises experiments; the answer has one outcome for each, in their order. */
export function useExperimentVerb(): UseMutationResult<Outcomes, ApiError, ExperimentWish> {
  const refreshed = useRefreshed();
  return useMutation<Outcomes, ApiError, ExperimentWish>({
    mutationFn: async ({ ids, verb, priority }) => {
      const body = { ids: [...ids], ...(priority === undefined ? {} : { priority }) };
      return (await post(`/v1/experiments:${verb}`, { body: body as never })).items;
    },
    onSettled: refreshed,
  });
}

/** Stops trials, or tries failed ones again; the answer has one outcome for each, in their order. */
export function useTrialVerb(): UseMutationResult<Outcomes, ApiError, { readonly ids: readonly string[]; readonly verb: TrialVerb }> {
  const refreshed = useRefreshed();
  return useMutation({
    mutationFn: async ({ ids, verb }) => (await post(`/v1/trials:${verb}`, { body: { ids: [...ids] } })).items,
    onSettled: refreshed,
  });
}

/** Adds a trial of a point of the reader's own. */
export function useAddTrial(experimentId: string): UseMutationResult<Schemas["TrialDetail"], ApiError, { readonly body: Schemas["AddRequest"]; readonly key: string }> {
  const refreshed = useRefreshed();
  return useMutation({
    mutationFn: ({ body, key }) => post("/v1/experiments/{experiment_id}/trials", { path: { experiment_id: experimentId }, body, key }),
    onSuccess: refreshed,
  });
}

/** Queues an ended experiment again, with more trials. */
export function useExtend(experimentId: string): UseMutationResult<Schemas["ExperimentDetail"], ApiError, Schemas["ExtendRequest"]> {
  const refreshed = useRefreshed();
  return useMutation({
    mutationFn: (body) => post("/v1/experiments/{experiment_id}:extend", { path: { experiment_id: experimentId }, body }),
    onSuccess: refreshed,
  });
}

/** Queues an experiment that goes on from a checkpoint. */
export function useFork(): UseMutationResult<Schemas["ExperimentDetail"], ApiError, ForkWish> {
  const client = useQueryClient();
  return useMutation<Schemas["ExperimentDetail"], ApiError, ForkWish>({
    mutationFn: ({ runId, body, key }) => post("/v1/runs/{run_id}:fork", { path: { run_id: runId }, body, key }),
    onSuccess: (experiment) => {
      client.setQueryData(["experiment", experiment.id], experiment);
      void client.invalidateQueries({ queryKey: ["forks"] });
      void client.invalidateQueries({ queryKey: ["checkpoints"] });
      return client.invalidateQueries({ queryKey: ["experiments"] });
    },
  });
}
