#!/bin/sh
# Parse every Mermaid diagram of README.md and LEARNINGS.md with Mermaid itself: sh docs/check_mermaid.sh
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$root/docs/check_mermaid.mjs" "$folder"
npm install --prefix "$folder" --no-audit --no-fund --silent mermaid@11 jsdom@26
node "$folder/check_mermaid.mjs" "$root/README.md" "$root/LEARNINGS.md"
