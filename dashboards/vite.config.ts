import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

const API = process.env["EVENLOAD_URL"] ?? "http://127.0.0.1:8080";

// The output is committed (a checkout has a dashboard without Node), so names are stable and nothing in it depends on
// the machine or the hour of the build: one script, one style sheet, no hashes, no source map.
export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/v1": API, "/livez": API, "/readyz": API } },
  build: {
    outDir: "../api/webui",
    emptyOutDir: true,
    target: "es2022",
    cssCodeSplit: false,
    modulePreload: false,
    // A data: URL would need a wider content security policy than 'self'.
    assetsInlineLimit: 0,
    rolldownOptions: {
      output: { codeSplitting: false, entryFileNames: "app.js", assetFileNames: "app[extname]" },
    },
  },
  test: { include: ["tests/**/*.test.ts", "tests/**/*.test.tsx"], environment: "node" },
});
