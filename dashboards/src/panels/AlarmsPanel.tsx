/** Which rule raised its alarm, about which layer, from when to when. */

import { useMemo } from "react";
import { Link } from "wouter";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { formatCount, formatNumber } from "../lib/format";
import { NONE } from "../lib/glyphs";
import { alarmSpans, conditionInWords, ruleInWords, type AlarmSpan } from "./alarms";

interface Props {
  readonly answer: Answer<Schemas["AlarmList"]>;
  /** Said where no alarm was raised. */
  readonly watched: string;
  /** Of an experiment: the name of each trial by id. Without it, the alarms are those of one trial. */
  readonly trialNames?: ReadonlyMap<string, string>;
  /** Shows the curves around the step. */
  readonly onAround?: (step: number) => void;
  readonly onHover?: (trialId: string | null) => void;
}

const MOST = 12;

function Where({ alarm }: { readonly alarm: Schemas["Alarm"] }): React.JSX.Element {
  return (
    <>
      step {alarm.step} <span className="sub-inline">{formatCount(alarm.tokens)} tokens</span>
    </>
  );
}

function Cleared({ span }: { readonly span: AlarmSpan }): React.JSX.Element {
  if (span.cleared !== null) return <Where alarm={span.cleared} />;
  return <span className={`tag ${span.raised.severity === "stop" ? "tone-bad" : "tone-warn"}`}>{span.raised.severity === "stop" ? "ended the run" : "not cleared"}</span>;
}

export function AlarmsPanel({ answer, watched, trialNames, onAround, onHover }: Props): React.JSX.Element {
  const spans = useMemo(() => alarmSpans(answer.data?.items ?? []), [answer.data]);
  return (
    <Panel
      title="Alarms"
      hint={spans.length === 0 ? undefined : "Rules about this model's metrics that began to hold. Bars along the bottom of the curves show them, by their number. An alarm says what was measured, not why."}
      className="wide"
      answer={answer}
      height={90}
      empty={() => (spans.length === 0 ? `No alarm. ${watched}` : null)}
    >
      {() => (
        <details className="plain-details" open={spans.length <= MOST}>
          <summary>
            {spans.length} {spans.length === 1 ? "alarm" : "alarms"}, {spans.filter((span) => span.cleared === null).length} not cleared
          </summary>
          <div className="table-wrap">
            <table>
              <caption className="visually-hidden">Alarms</caption>
              <thead>
                <tr>
                  <th scope="col">#</th>
                  {trialNames !== undefined && <th scope="col">Trial</th>}
                  <th scope="col">Rule</th>
                  <th scope="col">Layer</th>
                  <th scope="col" title="The step at which it was said; it began to hold earlier">Raised</th>
                  <th scope="col">Cleared</th>
                  <th scope="col" className="num">Value</th>
                  <th scope="col">Condition</th>
                  {onAround !== undefined && (
                    <th scope="col">
                      <span className="visually-hidden">Show</span>
                    </th>
                  )}
                </tr>
              </thead>
              <tbody>
                {spans.map((span, index) => {
                  const { raised } = span;
                  return (
                    <tr key={`${raised.trial_id} ${raised.step} ${raised.rule} ${raised.metric} ${raised.layer ?? ""}`} title={raised.message} onMouseEnter={() => onHover?.(raised.trial_id)} onMouseLeave={() => onHover?.(null)}>
                      <td className="nowrap">A{index + 1}</td>
                      {trialNames !== undefined && (
                        <td>
                          <Link href={`/t/${raised.trial_id}`}>{trialNames.get(raised.trial_id) ?? raised.trial_id}</Link>
                        </td>
                      )}
                      <td className="nowrap">
                        <strong>{ruleInWords(raised.rule)}</strong>
                      </td>
                      <td>{raised.layer === null ? NONE : `L${raised.layer}`}</td>
                      <td className="nowrap">
                        <Where alarm={raised} />
                      </td>
                      <td className="nowrap">
                        <Cleared span={span} />
                      </td>
                      <td className="num">{formatNumber(raised.value, 3)}</td>
                      <td className="condition">{conditionInWords(raised)}</td>
                      {onAround !== undefined && (
                        <td>
                          <button type="button" className="quiet-button" onClick={() => onAround(raised.first_step)}>
                            Curves
                          </button>
                        </td>
                      )}
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        </details>
      )}
    </Panel>
  );
}
