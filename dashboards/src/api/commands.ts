/** What the pages ask the API to do, as hooks. Answers go where the questions would read them. */

import { useMutation, useQueryClient, type UseMutationResult } from "@tanstack/react-query";

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

/** Asks for the end of an experiment. */
export function useCancel(): UseMutationResult<Schemas["ExperimentDetail"], ApiError, string> {
  const client = useQueryClient();
  return useMutation<Schemas["ExperimentDetail"], ApiError, string>({
    mutationFn: (id) => post("/v1/experiments/{experiment_id}:cancel", { path: { experiment_id: id } }),
    onSuccess: (experiment) => {
      client.setQueryData(["experiment", experiment.id], experiment);
      return client.invalidateQueries({ queryKey: ["experiments"] });
    },
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
