// Parse the Mermaid diagrams of the pages named; docs/check_mermaid.sh installs what this needs.
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!DOCTYPE html><body></body>");
globalThis.window = window;
globalThis.document = window.document;
const { default: mermaid } = await import("mermaid");

let found = 0;
let wrong = 0;
for (const page of process.argv.slice(2)) {
  const text = readFileSync(page, "utf-8");
  for (const match of text.matchAll(/^```mermaid\n([^]*?)^```$/gm)) {
    const place = `${basename(page)}:${text.slice(0, match.index).split("\n").length}`;
    found += 1;
    try {
      console.log(`${place}: ${(await mermaid.parse(match[1])).diagramType}`);
    } catch (error) {
      wrong += 1;
      console.error(`${place}: ${error.message}`);
    }
  }
}
console.log(`${found} diagrams, ${wrong} wrong`);
process.exit(wrong || !found ? 1 : 0);
