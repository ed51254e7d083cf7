// The server's API as the page uses it.

let token = sessionStorage.getItem("token") ?? "";

// What the server refused, in its own words.
export class Refusal extends Error {}

async function askForToken() {
  const dialog = document.querySelector("#token-dialog");
  const closed = new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (!dialog.open) dialog.showModal();
  await closed;
  token = document.querySelector("#token").value.trim();
  sessionStorage.setItem("token", token);
}

// fetch() with the token; a problem becomes a Refusal, and a full queue is asked again once it may have room.
export async function ask(path, options = {}) {
  for (let tries = 0; ; tries++) {
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server cannot be reached.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401 && tries < 3) {
      await askForToken();
      continue;
    }
    if (answer.status === 429 && tries < 100) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      continue;
    }
    const problem = await answer.json().catch(() => ({}));
    throw new Refusal(problem.detail ?? `The server answers ${answer.status}.`);
  }
}

// Follow a job: calls changed(document) at every event until the job has ended, also across lost connections.
export async function follow(id, changed) {
  for (let failures = 0; failures < 30; ) {
    try {
      const answer = await ask(`/v1/jobs/${id}/events`);
      for await (const job of documents(answer.body)) {
        failures = 0;
        changed(job);
        if (["done", "failed", "cancelled"].includes(job.state)) return job;
      }
    } catch (error) {
      if (error instanceof Refusal && !error.message.includes("reached")) throw error;
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  throw new Refusal("The server cannot be reached.");
}

// The documents of a stream of server-sent events.
async function* documents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: {\"id\""));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}
