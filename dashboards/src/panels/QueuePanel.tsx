/** Who waits for a place, in which order places go out, and for what. */

import { Link } from "wouter";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { formatCount } from "../lib/format";

type Amounts = Schemas["Amounts"];

/** Free of all, in words: `2 of 8 GPUs`. Kinds that there are none of are left out. */
export function placesInWords(used: Amounts, total: Amounts | null): string {
  if (total === null) return "";
  const kinds = [
    ["gpus", "GPUs"],
    ["cpus", "CPUs"],
    ["memory_gib", "GiB of memory"],
  ] as const;
  return kinds
    .filter(([key]) => total[key] > 0)
    .map(([key, name]) => `${formatCount(Math.max(0, total[key] - used[key]))} of ${formatCount(total[key])} ${name}`)
    .join(", ");
}

export function QueuePanel({ answer }: { readonly answer: Answer<Schemas["QueueRead"]> }): React.JSX.Element | null {
  const queue = answer.data;
  const waiting = queue?.items.filter((item) => item.reason !== "") ?? [];
  // Nobody waits on most days: then the list below is all there is to see.
  if (queue === undefined || waiting.length === 0) return null;
  const places = placesInWords(queue.used, queue.total);
  return (
    <Panel title="Waiting" hint={`In the order in which places of the cluster go out.${places === "" ? "" : ` Free now: ${places}.`}${queue.is_served ? "" : " No orchestrator reports: nothing starts until one does."}`} answer={answer} height={90}>
      {() => (
        <div className="table-wrap">
          <table>
            <caption className="visually-hidden">Waiting experiments</caption>
            <thead>
              <tr>
                <th scope="col" className="num">#</th>
                <th scope="col">Experiment</th>
                <th scope="col">Owner</th>
                <th scope="col" className="num">Priority</th>
                <th scope="col" className="num">Running trials</th>
                <th scope="col">Why it waits</th>
              </tr>
            </thead>
            <tbody>
              {waiting.map((item, index) => (
                <tr key={item.experiment_id}>
                  <td className="num">{index + 1}</td>
                  <td>
                    <Link href={`/e/${item.experiment_id}`} className="row-link">
                      {item.name}
                    </Link>
                  </td>
                  <td>{item.owner}</td>
                  <td className="num">{item.priority}</td>
                  <td className="num">{item.num_running}</td>
                  <td>{item.reason}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}
