// Reads, writes and remembers: a session is saved in IndexedDB after each action, under the identity of its model.
import { load } from "titans-runtime";

const NEW_TOKENS = 120;
const element = (id) => document.getElementById(id);
const wish = new URLSearchParams(location.search);
const provider = wish.get("provider") ?? "wasm";
const buttons = ["read", "write", "forget"].map(element);

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function memories(mode) {
  const opening = indexedDB.open("titans-memories", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("memories");
  return (await done(opening)).transaction("memories", mode).objectStore("memories");
}

async function begin() {
  const model = await load(wish.get("bundle") ?? "./bundle", { provider, threads: 1 });
  const saved = await done((await memories("readonly")).get(model.identity));
  let session = saved ? await model.restore(saved) : model.session();
  const remember = async () => done((await memories("readwrite")).put(await session.toBytes(), model.identity));
  const report = (what) => {
    const { tokens, mean } = session.surprise;
    const surprise = tokens ? ` Surprise so far: ${mean.toFixed(3)}.` : "";
    element("status").textContent = `${what} ${session.position} tokens of you are in its memory.${surprise}`;
    element("status").dataset.position = session.position;
  };

  const actions = {
    async read(text) {
      if (text) await session.feed(text);
    },
    async write(text) {
      element("written").textContent = "";
      const prompt = text || (session.position ? undefined : "\n");
      const options = { maxNewTokens: NEW_TOKENS, temperature: Number(wish.get("temperature") ?? 0.7) };
      for await (const piece of session.generate(prompt, options)) element("written").textContent += piece.text;
    },
    async forget() {
      session.dispose();
      session = model.session();
    },
  };
  for (const button of buttons) {
    button.disabled = false;
    button.onclick = async () => {
      for (const each of buttons) each.disabled = true;
      try {
        await actions[button.id](element("text").value);
        element("text").value = "";
        await remember();
        report("Remembered:");
      } catch (error) {
        element("status").textContent = error.message;
      }
      for (const each of buttons) each.disabled = false;
    };
  }
  report(saved ? "Welcome back:" : "Hello:");
}

begin().catch((error) => {
  element("status").textContent = error.message;
});
