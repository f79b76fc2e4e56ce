/** Held-out bits per byte of one trial, per domain: at initialisation, now, and on the way. */

import { useMemo } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { LineChart, type ChartLine } from "../charts/LineChart";
import { Panel } from "../components/Panel";
import { formatFixed, formatSigned, shortCount } from "../lib/format";

type Evaluation = Schemas["Evaluation"];

/** First and last bits per byte of one domain. */
export interface DomainProgress {
  readonly domain: string;
  /** At step 0; null if the first evaluation came later. */
  readonly initial: number | null;
  readonly final: number | null;
  readonly step: number;
}

/** Per domain in the given order, `all` last. */
export function domainProgress(items: readonly Evaluation[], domains: readonly string[]): DomainProgress[] {
  const ordered = [...domains.filter((domain) => domain !== "all"), ...domains.filter((domain) => domain === "all")];
  return ordered.map((domain) => {
    const mine = items.filter((item) => item.domain === domain).sort((a, b) => a.step - b.step);
    const last = mine[mine.length - 1];
    return {
      domain,
      initial: mine[0]?.step === 0 ? mine[0].bits_per_byte : null,
      final: last !== undefined && last.step > 0 ? last.bits_per_byte : null,
      step: last?.step ?? 0,
    };
  });
}

export function domainTitle(domain: string): string {
  return domain === "all" ? "mean over domains" : domain.replaceAll("_", " ");
}

export function DomainsPanel({ answer }: { readonly answer: Answer<Schemas["EvaluationList"]> }): React.JSX.Element {
  return (
    <Panel
      title="Held-out text: bits per byte by domain"
      hint="Lower is better. Compared with the same model before its first step."
      answer={answer}
      height={320}
      empty={(list) => (list.items.length === 0 ? "No evaluation yet. The first comes before the first step." : null)}
    >
      {(list) => <Domains list={list} />}
    </Panel>
  );
}

function Domains({ list }: { readonly list: Schemas["EvaluationList"] }): React.JSX.Element {
  const rows = useMemo(() => domainProgress(list.items, list.domains), [list]);
  const lines = useMemo<ChartLine[]>(
    () =>
      rows.map(({ domain }, slot) => {
        const mine = list.items.filter((item) => item.domain === domain).sort((a, b) => a.tokens - b.tokens);
        return { key: domain, label: domainTitle(domain), slot, x: mine.map((item) => item.tokens), y: mine.map((item) => item.bits_per_byte) };
      }),
    [list, rows],
  );
  const most = Math.max(...rows.map((row) => Math.max(row.initial ?? 0, row.final ?? 0)), 1e-9);
  return (
    <>
      <LineChart lines={lines} xName="training tokens" yName="bits per byte" formatX={shortCount} points warmup={0.12} height={250} legend summary="Held-out bits per byte of each domain over training tokens." />
      <div className="table-wrap">
        <table>
          <caption className="visually-hidden">Bits per byte by domain</caption>
          <thead>
            <tr>
              <th scope="col">Domain</th>
              <th scope="col" className="num">At initialisation</th>
              <th scope="col" className="num">Now</th>
              <th scope="col" className="num">Change</th>
              <th scope="col" className="bar-cell"><span className="visually-hidden">Picture</span></th>
            </tr>
          </thead>
          <tbody>
            {rows.map(({ domain, initial, final }) => (
              <tr key={domain} className={domain === "all" ? "total" : ""}>
                <th scope="row">{domainTitle(domain)}</th>
                <td className="num muted">{formatFixed(initial, 3)}</td>
                <td className="num">{formatFixed(final, 3)}</td>
                <td className="num">{initial === null || final === null ? "" : formatSigned(final - initial)}</td>
                <td className="bar-cell" aria-hidden="true">
                  <span className="bar ghost" style={{ width: `${((initial ?? 0) / most) * 100}%` }} />
                  <span className="bar" style={{ width: `${((final ?? 0) / most) * 100}%` }} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
