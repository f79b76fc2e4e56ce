import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const SOURCE = join(import.meta.dirname, "..", "src");

// charts know numbers, panels know MoE, pages know addresses: each may import what stands before it.
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  lib: ["lib", "api"],
  api: ["api", "lib"],
  charts: ["charts", "lib"],
  components: ["components", "api", "lib"],
  panels: ["panels", "charts", "components", "api", "lib"],
  pages: ["pages", "panels", "charts", "components", "api", "lib"],
};

function files(folder: string): string[] {
  return readdirSync(join(SOURCE, folder)).filter((name) => /\.tsx?$/.test(name) && name !== "schema.d.ts").map((name) => join(folder, name));
}

test.each(Object.keys(ALLOWED))("%s imports only what stands before it", (folder) => {
  for (const file of files(folder)) {
    const text = readFileSync(join(SOURCE, file), "utf8");
    for (const [, other] of text.matchAll(/from "\.\.\/(\w+)\//g)) expect(ALLOWED[folder], `${file} imports ${other}`).toContain(other);
  }
});

test("nothing is of type any, and the source is ASCII", () => {
  for (const file of Object.keys(ALLOWED).flatMap(files)) {
    const text = readFileSync(join(SOURCE, file), "utf8");
    expect(text, file).not.toMatch(/(:|as|<|\|)\s*any\b/);
    expect(text, file).toMatch(/^[\x00-\x7f]*$/);
  }
});

test("only pages and the shell know addresses", () => {
  for (const file of ["charts", "panels"].flatMap(files)) {
    expect(readFileSync(join(SOURCE, file), "utf8"), file).not.toMatch(/useAddress|useLocation|window\.location/);
  }
});
