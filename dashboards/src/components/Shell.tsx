/** What is on every page: the top bar, the keys, the way in. */

import { useEffect, useState, type ReactNode } from "react";
import { Link, useLocation } from "wouter";

import { useKeys } from "../lib/keys";
import { compareAddress, useSelection } from "../lib/selection";
import { toggleTheme, useTheme } from "../lib/theme";
import { KeysDialog } from "./Dialogs";

export function Shell({ children }: { readonly children: ReactNode }): React.JSX.Element {
  const [location, navigate] = useLocation();
  const [keysShown, setKeysShown] = useState(false);
  const selection = useSelection();
  const theme = useTheme();
  useKeys({
    "?": () => setKeysShown(true),
    g: () => navigate("/"),
    t: toggleTheme,
    c: () => selection.length > 0 && navigate(compareAddress(selection)),
    "/": (event) => {
      const field = document.querySelector<HTMLInputElement>("input[type=search]");
      if (field === null) return;
      event.preventDefault();
      field.focus();
    },
  });
  useEffect(() => {
    // In a block: browsers begin to return a promise here, which React would take for a cleanup.
    window.scrollTo(0, 0);
  }, [location]);
  return (
    <>
      <a className="skip" href="#content">
        Skip to content
      </a>
      <header className="topbar">
        <Link href="/" className="brand">
          <img src="/icon.svg" alt="" width="24" height="24" /> evenload
        </Link>
        <nav aria-label="Main">
          <Link href="/" className={(active) => (active || location.startsWith("/e/") || location.startsWith("/t/") ? "active" : "")}>
            Experiments
          </Link>
          <Link href={compareAddress(selection)} className={location === "/compare" ? "active" : ""}>
            Compare{selection.length > 0 && <span className="count">{selection.length}</span>}
          </Link>
        </nav>
        <span className="grow" />
        <button type="button" className="icon-button" onClick={toggleTheme} aria-label={theme === "dark" ? "Use light colours" : "Use dark colours"} title="Light or dark (t)">
          <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
            <circle cx="10" cy="10" r="6.5" fill="none" stroke="currentColor" strokeWidth="1.6" />
            <path d="M10 3.5a6.5 6.5 0 0 1 0 13z" fill="currentColor" />
          </svg>
        </button>
        <button type="button" className="icon-button" onClick={() => setKeysShown(true)} aria-label="Keys" title="Keys (?)">
          ?
        </button>
      </header>
      <main id="content" tabIndex={-1}>
        {children}
      </main>
      {keysShown && <KeysDialog onClose={() => setKeysShown(false)} />}
    </>
  );
}

export interface Crumb {
  readonly name: string;
  readonly href?: string;
}

/** The way back. */
export function Crumbs({ crumbs }: { readonly crumbs: readonly Crumb[] }): React.JSX.Element {
  return (
    <nav className="crumbs" aria-label="Breadcrumb">
      <ol>
        {crumbs.map(({ name, href }) => (
          <li key={name}>{href === undefined ? <span aria-current="page">{name}</span> : <Link href={href}>{name}</Link>}</li>
        ))}
      </ol>
    </nav>
  );
}
