/** A card with a title and the five states of what is in it: loading, empty, error, live, stale. */

import { Component, useEffect, useId, useState, type ReactNode } from "react";

import type { ApiError } from "../api/client";
import type { Answer } from "../api/queries";
import { formatTime } from "../lib/format";
import { ELLIPSIS } from "../lib/glyphs";

interface FrameProps {
  readonly title: string;
  /** One sentence: what the panel shows, with units and definitions. */
  readonly hint?: ReactNode;
  readonly actions?: ReactNode;
  readonly chip?: ReactNode;
  readonly className?: string;
  readonly children: ReactNode;
}

/** The card itself. A fault while drawing its content stays inside it. */
export function Frame({ title, hint, actions, chip, className = "", children }: FrameProps): React.JSX.Element {
  const id = useId();
  return (
    <section className={`panel ${className}`} aria-labelledby={id}>
      <header className="panel-head">
        <div>
          <h2 id={id}>
            {title} {chip}
          </h2>
          {hint !== undefined && <p className="hint">{hint}</p>}
        </div>
        {actions !== undefined && <div className="panel-actions">{actions}</div>}
      </header>
      <Guard>{children}</Guard>
    </section>
  );
}

interface Props<T> extends Omit<FrameProps, "children" | "chip"> {
  readonly answer: Answer<T>;
  /** Why there is nothing to show and what would change that; null if there is something. */
  readonly empty?: (data: T) => ReactNode | null;
  /** Height of the placeholder, so that nothing jumps when the data comes. */
  readonly height?: number;
  readonly children: (data: T) => ReactNode;
}

/** A card around one answer of the API. */
export function Panel<T>({ answer, empty, height = 200, children, ...frame }: Props<T>): React.JSX.Element {
  const { data, error } = answer;
  let body: ReactNode;
  if (data !== undefined) {
    const nothing = empty?.(data) ?? null;
    body = nothing === null ? <div className={answer.isPlaceholderData ? "dimmed" : ""}>{children(data)}</div> : <Empty>{nothing}</Empty>;
  } else if (error !== null) body = <Failed error={error} onRetry={() => void answer.refetch()} />;
  else body = <Skeleton height={height} />;
  return (
    <Frame {...frame} chip={data !== undefined && error !== null ? <Stale since={answer.dataUpdatedAt} /> : undefined}>
      {body}
    </Frame>
  );
}

export function Empty({ children }: { readonly children: ReactNode }): React.JSX.Element {
  return <div className="empty">{children}</div>;
}

export function Failed({ error, onRetry }: { readonly error: ApiError; readonly onRetry?: () => void }): React.JSX.Element {
  return (
    <div className="failed" role="alert">
      <p>
        <strong>{error.status === 404 ? "Not found" : "This could not be loaded"}.</strong> {error.message}
      </p>
      <p className="failed-foot">
        {onRetry !== undefined && (
          <button type="button" className="button" onClick={onRetry}>
            Retry
          </button>
        )}
        {error.requestId != null && <span className="muted">request {error.requestId}</span>}
      </p>
    </div>
  );
}

function Stale({ since }: { readonly since: number }): React.JSX.Element {
  return <span className="tag tone-warn">stale, last update {formatTime(since).split(", ").pop()}</span>;
}

function Skeleton({ height }: { readonly height: number }): React.JSX.Element {
  const [slow, setSlow] = useState(false);
  useEffect(() => {
    const timer = window.setTimeout(() => setSlow(true), 400);
    return () => window.clearTimeout(timer);
  }, []);
  return (
    <div className="skeleton" style={{ height }} aria-busy="true">
      {slow && <span>Loading{ELLIPSIS}</span>}
    </div>
  );
}

class Guard extends Component<{ readonly children: ReactNode }, { readonly error: Error | null }> {
  override state = { error: null as Error | null };

  static getDerivedStateFromError(error: Error): { error: Error } {
    return { error };
  }

  override render(): ReactNode {
    if (this.state.error === null) return this.props.children;
    return (
      <div className="failed" role="alert">
        <p>
          <strong>This panel could not be drawn.</strong> {this.state.error.message}
        </p>
        <button type="button" className="button" onClick={() => this.setState({ error: null })}>
          Try again
        </button>
      </div>
    );
  }
}
