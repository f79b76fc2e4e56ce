/** Signing in: the token of the address that `evenload up` prints becomes a cookie that scripts cannot read. */

import { post } from "./client";

/** Exchanges the token for the cookie; throws ApiError 401 if it is not the right one. */
export async function openSession(token: string): Promise<void> {
  await post("/v1/session", { body: { token } });
}

/**
 * Uses and removes `?token=` of the page's own address, so that it is in no bookmark, screenshot or Referer.
 * Resolves to the error's message if the token was refused, else to null.
 */
export async function takeTokenFromAddress(): Promise<string | null> {
  const url = new URL(window.location.href);
  const token = url.searchParams.get("token");
  if (token === null) return null;
  url.searchParams.delete("token");
  window.history.replaceState(null, "", url.pathname + url.search + url.hash);
  try {
    await openSession(token);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
