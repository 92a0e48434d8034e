// Carries out the tests' commands in Node: one line of JSON in, one out. The first argument is the package.
import { createInterface } from "node:readline";
import { start } from "./commands.mjs";

const { load } = await import(process.argv[2]);
const handle = start(load);
for await (const line of createInterface({ input: process.stdin })) console.log(JSON.stringify(await handle(JSON.parse(line))));
