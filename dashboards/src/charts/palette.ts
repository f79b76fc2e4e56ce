/** Colours of series. A series takes the colour of its slot in the selection, so it is the same in every chart of a page. */

import type { Theme } from "../lib/theme";

/**
 * Chosen so that any two differ by at least 15 (CIE76) with normal and with red-, green- and blue-blind vision, and each
 * has a contrast of at least 3:1 on the background (tests/palette.test.ts).
 */
export const SERIES_COLOURS: Readonly<Record<Theme, readonly string[]>> = {
  light: ["#2f8ac4", "#b8860b", "#882255", "#332288", "#6b4e00", "#000000"],
  dark: ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#f5f5f5"],
};

export const SURFACE: Readonly<Record<Theme, string>> = { light: "#ffffff", dark: "#191f27" };

export interface SlotStyle {
  readonly colour: string;
  /** Canvas dash pattern; empty is a full line. */
  readonly dash: readonly number[];
}

const DASHES: readonly (readonly number[])[] = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

/** Slots of controls: what chance alone would give. Grey, so that they are not taken for one more series. */
export const CONTROL_SLOTS = { uniform: -1, shuffled: -2 } as const;

const CONTROL_COLOURS: Readonly<Record<Theme, string>> = { light: "#6a7785", dark: "#93a1af" };

/** The colour and dash of the slot: hues first, then the same hues with another dash. */
export function slotStyle(slot: number, theme: Theme): SlotStyle {
  if (slot < 0) return { colour: CONTROL_COLOURS[theme], dash: slot === CONTROL_SLOTS.uniform ? [2, 3] : [7, 4] };
  const colours = SERIES_COLOURS[theme];
  const colour = colours[slot % colours.length] ?? "#808080";
  return { colour, dash: DASHES[Math.floor(slot / colours.length) % DASHES.length] ?? [] };
}

/** `#rrggbb` with an opacity. */
export function withAlpha(colour: string, alpha: number): string {
  return colour + Math.round(alpha * 255).toString(16).padStart(2, "0");
}
