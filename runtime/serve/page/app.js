// The page: photos of this visit, the wish, the job that restores each, before and after.

import { Refusal, ask, follow } from "./api.js";
import { Mask } from "./mask.js";

const $ = (selector) => document.querySelector(selector);
const photos = []; // of this visit, in order; each {file, name, url, mask, job, result, problem, …}
let shown = null;
let chosen = []; // plugins, in the order in which they were picked
let painting = false;
let erasing = false;

const tools = {
  size: () => Number($("#brush-size").value),
  erases: () => erasing,
  toggleEraser: () => setErasing(!erasing),
};

// ---- photos

function addPhotos(files) {
  const pictures = [...files].filter((file) => file.size);
  for (const file of pictures) {
    const name = file.name || "pasted.png";
    photos.push({ file, name, url: URL.createObjectURL(file), state: "new" });
  }
  if (pictures.length) show(photos[photos.length - pictures.length]);
}

for (const input of [$("#files"), $("#camera")]) {
  input.addEventListener("change", () => {
    addPhotos(input.files);
    input.value = "";
  });
}
document.addEventListener("paste", (event) => addPhotos(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("#drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("#drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("#drop").classList.remove("over");
  addPhotos(event.dataTransfer.files);
});

// ---- what is on the stage

function show(photo) {
  shown = photo;
  setPainting(false);
  draw();
}

function draw() {
  drawStage();
  drawWork();
  drawHistory();
}

function drawStage() {
  const stage = $("#stage");
  if (!shown) return;
  if (stage.shownPhoto === shown && stage.shownResult === shown.result) return;
  stage.shownPhoto = shown;
  stage.shownResult = shown.result;
  if (shown.result && !shown.unseen) {
    const slider = document.createElement("img-comparison-slider");
    slider.tabIndex = 0;
    slider.setAttribute("aria-label", "Before and after; arrow keys move the line");
    slider.append(picture(shown.url, "before", "first"), picture(shown.result, "after", "second"));
    stage.replaceChildren(slider);
    return;
  }
  const photo = shown;
  const frame = document.createElement("div");
  frame.className = "photo";
  const image = picture(photo.result ?? photo.url, photo.name);
  image.addEventListener("error", () => {
    photo.unseen = true;
    const note = document.createElement("p");
    note.textContent = "This browser cannot show the file; it can be restored all the same.";
    frame.replaceChildren(note);
  });
  image.addEventListener("load", () => {
    photo.mask ??= new Mask(image, tools);
    frame.append(photo.mask.canvas, photo.mask.cursor);
  });
  frame.append(image);
  stage.replaceChildren(frame);
}

function picture(url, alt, slot) {
  const image = document.createElement("img");
  image.src = url;
  image.alt = alt;
  if (slot) image.slot = slot;
  return image;
}

function drawWork() {
  const busy = shown && ["sending", "queued", "running"].includes(shown.state);
  $("#working").hidden = !busy;
  $("#cancel").hidden = !busy || !shown.job;
  $("#restore").hidden = Boolean(busy);
  $("#restore").disabled = !shown;
  const waiting = photos.filter((photo) => ["new"].includes(photo.state)).length;
  $("#restore").textContent = waiting > 1 ? `Restore ${waiting} photos` : "Restore";
  if (busy) drawProgress();
  const why = $("#why");
  why.hidden = !shown?.selection?.chosen.length;
  if (!why.hidden) why.textContent = reason(shown);
  $("#error").hidden = !shown?.problem;
  $("#error").textContent = shown?.problem ?? "";
  const download = $("#download");
  download.hidden = !shown?.result;
  if (shown?.result) Object.assign(download, { href: shown.result, download: shown.resultName });
}

function drawProgress() {
  const { document: job, state } = shown;
  const bar = $("#progress");
  const left = job?.seconds_left == null ? "" : `, about ${Math.max(1, Math.round(job.seconds_left))} s left`;
  if (state === "running" && job.steps) bar.value = job.step / job.steps;
  else bar.removeAttribute("value");
  const texts = {
    sending: "sending …",
    queued: `waiting, place ${job?.queue_position ?? "?"}${left}`,
    running: job?.cancelling ? "cancelling …" : `${job?.plugin ?? "looking"}: step ${job?.step ?? 0} of ${job?.steps ?? "?"}${left}`,
  };
  $("#status").textContent = texts[state];
}

function reason({ selection, seconds, strength }) {
  const names = selection.chosen.map(titleOf).join(", then ");
  const took = seconds ? ` in ${seconds.toFixed(1)} s` : "";
  const kept = strength != null && strength < 1 ? `, ${Math.round(strength * 100)} % of the change` : "";
  if (selection.findings?.length) {
    if (selection.chosen.length) return `${names}${took}${kept}, as seen in the photo.`;
    return "Nothing found to restore: the photo stays as it is. If you see something, say it in words.";
  }
  const asked = Object.keys(selection.scores).length;
  return `${names}${took}${kept}, ${asked ? "as understood from your words" : "as you picked"}.`;
}

function drawHistory() {
  $("#history").replaceChildren(
    ...photos.map((photo) => {
      const entry = document.createElement("li");
      const button = document.createElement("button");
      const label = document.createElement("span");
      button.type = "button";
      button.setAttribute("aria-current", String(photo === shown));
      button.title = photo.name;
      label.textContent = `${{ done: "✓ ", failed: "✗ ", cancelled: "– " }[photo.state] ?? ""}${photo.name}`;
      button.append(picture(photo.unseen ? "icon.svg" : (photo.result ?? photo.url), ""), label);
      button.addEventListener("click", () => show(photo));
      entry.append(button);
      return entry;
    }),
  );
}

// ---- restoring

$("#controls").addEventListener("submit", (event) => {
  event.preventDefault();
  const waiting = photos.filter((photo) => photo.state === "new");
  for (const photo of waiting.length ? waiting : [again(shown)]) restore(photo);
});

// The same photo once more, as an entry of its own: the former result stays in the history.
function again(photo) {
  if (!photo.result) return Object.assign(photo, { state: "new", problem: null, selection: null });
  const copy = { file: photo.file, name: photo.name, url: photo.url, unseen: photo.unseen, mask: photo.mask, state: "new" };
  photos.push(copy);
  shown = copy;
  return copy;
}

async function form(photo) {
  const data = new FormData();
  data.append("image", photo.file, photo.name);
  if (chosen.length) data.append("plugins", chosen.join(","));
  else data.append("prompt", $("#prompt").value.trim());
  data.append("seed", $("#seed").value || "42");
  if ($("#steps").value) data.append("steps", $("#steps").value);
  data.append("strength", $("#auto").checked ? "auto" : String(Number($("#strength").value) / 100));
  data.append("format", $("#format").value);
  if (photo.mask && !photo.mask.isEmpty()) data.append("mask", await photo.mask.toBlob(), "mask.png");
  return data;
}

async function restore(photo) {
  Object.assign(photo, { state: "sending", problem: null, selection: null, result: null, job: null, document: null });
  setPainting(false);
  draw();
  try {
    const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");
    const answer = await ask("/v1/jobs", { method: "POST", body: await form(photo), headers: { "Idempotency-Key": key } });
    update(photo, await answer.json());
    const job = await follow(photo.job, (document) => update(photo, document));
    if (job.state === "done") await fetchResult(photo, job);
    else photo.problem = job.state === "cancelled" ? "Cancelled." : job.problem.detail;
    photo.state = job.state;
  } catch (error) {
    photo.state = "failed";
    photo.problem = error instanceof Refusal ? error.message : `The page failed: ${error.message}`;
  }
  draw();
}

function update(photo, document) {
  const busy = ["queued", "running"].includes(document.state);
  Object.assign(photo, { job: document.id, document, state: busy ? document.state : photo.state });
  for (const name of ["selection", "seconds", "strength"]) if (document[name] != null) photo[name] = document[name];
  if (photo === shown) drawWork();
}

async function fetchResult(photo, job) {
  const answer = await ask(job.links.result);
  const name = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("Content-Disposition"));
  photo.resultName = name ? decodeURIComponent(name[1]) : "restored";
  photo.result = URL.createObjectURL(await answer.blob());
}

$("#cancel").addEventListener("click", async () => {
  try {
    await ask(`/v1/jobs/${shown.job}`, { method: "DELETE" });
  } catch (error) {
    shown.problem = error.message;
    draw();
  }
});

// ---- wish, options, brush

function titleOf(id) {
  return document.querySelector(`#plugins [value="${CSS.escape(id)}"]`)?.textContent ?? id;
}

function pick(id) {
  chosen = chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id];
  for (const button of document.querySelectorAll("#plugins button")) {
    button.setAttribute("aria-pressed", String(chosen.includes(button.value)));
  }
  $("#prompt").disabled = chosen.length > 0;
  drawWork();
}

$("#prompt").addEventListener("input", drawWork);
function drawStrength() {
  $("#strength").disabled = $("#auto").checked;
  $("#strength + output").textContent = $("#auto").checked ? "auto" : `${$("#strength").value} %`;
}
for (const input of ["#strength", "#auto"]) $(input).addEventListener("input", drawStrength);

function setPainting(on) {
  painting = on && Boolean(shown?.mask);
  $("#brush").setAttribute("aria-pressed", String(painting));
  for (const id of ["#eraser", "#clear", "#brush-size"]) $(id).disabled = !painting;
  $("#stage .photo")?.classList.toggle("painting", painting);
  if (!painting) setErasing(false);
}

function setErasing(on) {
  erasing = on;
  $("#eraser").setAttribute("aria-pressed", String(on));
}

$("#brush").addEventListener("click", () => {
  const on = !painting;
  if (on && shown?.result) show(again(shown)); // one paints on the photo itself
  setPainting(on);
  if (painting) shown.mask.canvas.focus({ preventScroll: true });
});
$("#eraser").addEventListener("click", () => setErasing(!erasing));
$("#clear").addEventListener("click", () => shown?.mask?.clear());

// ---- the server

async function connect() {
  try {
    const { plugins } = await (await ask("/v1/plugins")).json();
    $("#plugins").replaceChildren(
      ...plugins.map((plugin) => {
        const button = document.createElement("button");
        Object.assign(button, { type: "button", value: plugin.id, textContent: plugin.title, title: plugin.examples[0] });
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => pick(plugin.id));
        return button;
      }),
    );
    $("#examples").replaceChildren(
      ...["auto", ...plugins.flatMap((plugin) => plugin.examples)].map((text) => Object.assign(document.createElement("option"), { value: text })),
    );
    const { bundles } = await (await ask("/v1/bundles")).json();
    const names = bundles.map(({ name, engine, precision }) => `${name}, ${engine} ${precision}`).join("; ");
    await untilReady(names);
  } catch (error) {
    $("#server").textContent = error.message;
    setTimeout(connect, 3000);
  }
}

// The engines are prepared in the background; photos may be sent meanwhile, and wait.
async function untilReady(names) {
  while (!(await fetch("/readyz")).ok) {
    $("#server").textContent = `preparing (${names}) …`;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  $("#server").textContent = `ready (${names})`;
}

connect();
