/** Characters beyond ASCII that the pages show, by name, so that the source itself stays ASCII. */
export const DOT = "\u00b7";
export const TIMES = "\u00d7";
export const MINUS = "\u2212";
export const DASH = "\u2013";
export const NONE = "\u2014";
export const ELLIPSIS = "\u2026";
export const DELTA = "\u0394";
export const UP = "\u2191";
export const DOWN = "\u2193";
export const RIGHT = "\u203a";
export const STAR = "\u2605";
export const TRIANGLE = "\u25b2";
export const AT_LEAST = "\u2265";
export const AT_MOST = "\u2264";
