/** The application: who answers which address, and what happens on a 401. */

import { QueryCache, QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode, useState, useSyncExternalStore } from "react";
import { createRoot } from "react-dom/client";
import { Link, Route, Switch } from "wouter";

import "uplot/dist/uPlot.min.css";
import "./app.css";
import { ApiError } from "./api/client";
import { takeTokenFromAddress } from "./api/session";
import { TokenDialog } from "./components/Dialogs";
import { Empty } from "./components/Panel";
import { Shell } from "./components/Shell";
import { startTheme } from "./lib/theme";
import { Compare } from "./pages/Compare";
import { Experiment } from "./pages/Experiment";
import { Experiments } from "./pages/Experiments";
import { Trial } from "./pages/Trial";

declare module "@tanstack/react-query" {
  interface Register {
    defaultError: ApiError;
  }
}

let locked = false;
const listeners = new Set<() => void>();

function setLocked(value: boolean): void {
  if (locked === value) return;
  locked = value;
  for (const listener of listeners) listener();
}

const client = new QueryClient({
  queryCache: new QueryCache({ onError: (error) => error instanceof ApiError && error.status === 401 && setLocked(true) }),
  defaultOptions: {
    // The API is often on this very machine: it can be asked without any network.
    mutations: { networkMode: "always" },
    queries: {
      networkMode: "always",
      refetchOnReconnect: true,
      retry: (failures, error) => failures < 1 && (error.status === 0 || error.status >= 500),
      retryDelay: 1_000,
      staleTime: 1_000,
      refetchIntervalInBackground: false,
    },
  },
});

function App({ refusedToken }: { readonly refusedToken: string | null }): React.JSX.Element {
  const isLocked = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => locked,
  );
  const [round, setRound] = useState(0);
  return (
    <Shell key={round}>
      {isLocked ? (
        <TokenDialog
          problem={refusedToken}
          onSignedIn={() => {
            setLocked(false);
            setRound(round + 1);
            void client.resetQueries();
          }}
        />
      ) : (
        <Switch>
          <Route path="/" component={Experiments} />
          <Route path="/e/:id">{({ id }) => <Experiment key={id} id={id} />}</Route>
          <Route path="/t/:id">{({ id }) => <Trial key={id} id={id} />}</Route>
          <Route path="/compare" component={Compare} />
          <Route>
            <Empty>
              There is no such page. <Link href="/">Experiments</Link>
            </Empty>
          </Route>
        </Switch>
      )}
    </Shell>
  );
}

startTheme();
const refusedToken = await takeTokenFromAddress();
const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
createRoot(root).render(
  <StrictMode>
    <QueryClientProvider client={client}>
      <App refusedToken={refusedToken} />
    </QueryClientProvider>
  </StrictMode>,
);
