// What the tests ask of titans-runtime, in Node and in pages alike: a command in, an answer out, arrays as base64.
// `start(load)` gives the function that carries them out.

const toText = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
};
const toBytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const toFloats = (text) => new Float32Array(toBytes(text).buffer);

export function start(load) {
  const models = {};
  const sessions = {};
  const marks = {};
  const commands = {
    async load({ model, bundle, options }) {
      const found = (models[model] = await load(bundle, options));
      const { name, variant, vocabSize, stateBytes, identity, provider } = found;
      return { name, variant, vocabSize, stateBytes, identity, provider };
    },
    async open({ model, session }) {
      sessions[session] = models[model].session();
    },
    async restore({ model, session, path, bytes }) {
      sessions[session] = await models[model].restore(path ?? toBytes(bytes));
      return sessions[session].position;
    },
    // The pieces of one stream, each in a call of its own.
    async feed({ session, pieces, vectors }) {
      const all = [];
      const surprise = [];
      for (const piece of pieces) {
        const fed = vectors
          ? await sessions[session].feedVectors(toFloats(piece), { all: true })
          : await sessions[session].feed(piece, { all: true });
        all.push(fed.all);
        surprise.push(fed.surprise);
      }
      const last = sessions[session].last;
      const joined = (arrays) => toText(new Float32Array(arrays.flatMap((each) => Array.from(each))));
      return { all: joined(all), surprise: joined(surprise), last: toText(last), position: sessions[session].position };
    },
    async bytes({ session }) {
      return toText(await sessions[session].toBytes());
    },
    async save({ session, path }) {
      await sessions[session].save(path);
    },
    async fork({ session, to }) {
      sessions[to] = sessions[session].fork();
    },
    async mark({ session, mark }) {
      marks[mark] = sessions[session].mark();
    },
    async rewind({ session, mark }) {
      sessions[session].rewind(marks[mark]);
      return sessions[session].position;
    },
    async reset({ session }) {
      sessions[session].reset();
    },
    async dispose({ session }) {
      sessions[session].dispose();
    },
    async generate({ session, prompt, options }) {
      const tokens = [];
      const texts = [];
      let ended;
      for await (const piece of sessions[session].generate(prompt, options)) {
        if (piece.token !== undefined) tokens.push(piece.token);
        texts.push(piece.text);
        ended = piece.ended;
      }
      return { tokens, text: texts.join(""), texts, ended };
    },
    // Whether a second call is refused while the first one runs.
    async together({ session, ids }) {
      const answers = await Promise.allSettled([sessions[session].feed(ids), sessions[session].feed(ids)]);
      return answers.map((answer) => answer.reason?.code ?? "ok");
    },
    async encode({ model, text, options }) {
      return models[model].tokenizer.encode(text, options);
    },
    async decode({ model, ids }) {
      return models[model].tokenizer.decode(ids);
    },
    async chat({ model, messages, options }) {
      return models[model].encodeChat(messages, options);
    },
    async stream({ model, ids, after }) {
      const stream = models[model].tokenizer.stream(after);
      return [...ids.map((id) => stream.push(id)), stream.finish()];
    },
  };
  return async (command) => {
    try {
      return { value: (await commands[command.do](command)) ?? null };
    } catch (error) {
      return { error: error.code ?? "unexpected", message: error.name === "TitansError" ? error.message : String(error.stack) };
    }
  };
}
