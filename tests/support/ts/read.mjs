// Reads many streams with the official TypeScript SDK: what it makes of each is one line of JSON on stdout.
// Arguments: the SDK's folder, and a base URL; stdin: a JSON list of the paths below it.
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, base] = process.argv.slice(2);
const { Anthropic } = createRequire(join(folder, "package.json"))("@anthropic-ai/sdk");
const ask = { model: "claude-x", max_tokens: 9, messages: [{ role: "user", content: "hi" }] };

async function read(path) {
  const client = new Anthropic({ apiKey: "k", authToken: null, baseURL: base + path, maxRetries: 0 });
  const texts = [];
  try {
    const stream = client.messages.stream(ask).on("text", (text) => texts.push(text));
    return { path, message: await stream.finalMessage(), text: texts.join("") };
  } catch (error) {
    return { path, error: { name: error.constructor.name, message: String(error.message), type: error.type ?? null } };
  }
}

let given = "";
for await (const piece of process.stdin) given += piece;
for (const path of JSON.parse(given)) console.log(JSON.stringify(await read(path)));
