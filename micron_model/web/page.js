"use strict";
// Every text goes into the page as text: names of files and messages are never read as HTML.
const about = JSON.parse(document.getElementById("about").textContent);
const at = (id) => document.getElementById(id);
let job = null;
let redraw = () => {};

function element(name, options = {}, children = []) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {...options, headers: {"X-Micron-Token": about.token}});
  } catch {
    throw new Error("micron serve does not answer: it was stopped, or the file is larger than is allowed");
  }
  const said = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || `micron serve answers with status ${answer.status}`);
  return said;
}

function show(error) {
  at("error").textContent = error ? error.message : "";
  at("error").hidden = !error;
}

function busy(text, done, total) {
  at("work").hidden = text === null;
  at("synthetic").disabled = at("files").disabled = text !== null;
  if (text === null) return;
  at("doing").textContent = text;
  if (total) at("bar").value = done / total; else at("bar").removeAttribute("value");
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function look(files) {
  if (job !== null) return;
  job = {id: null, stopped: false};
  const mine = job;
  show(null);
  at("result").hidden = true;
  try {
    const uploads = [];
    for (const file of files) {
      busy(`sending ${file.name}`);
      if (file.size > about.megabytes * 1e6) {
        throw new Error(`${file.name} is larger than ${about.megabytes} MB, which are allowed`);
      }
      const sent = await ask(`uploads?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file});
      if (mine.stopped) return;
      uploads.push(sent.upload);
    }
    mine.id = (await ask("jobs", {method: "POST", body: JSON.stringify({uploads})})).job;
    while (!mine.stopped) {
      const said = await ask(`jobs/${mine.id}`);
      if (said.state === "failed") throw new Error(said.message);
      if (said.state === "done") { report(said.result, mine.id); return; }
      if (said.state === "waiting") busy(`waiting: ${said.ahead} before this`);
      else if (!said.total) busy("looking for a face");
      else if (said.done < said.total) busy(`following the face: frame ${said.done} of ${said.total}`, said.done, said.total);
      else busy("drawing pictures");
      await pause(300);
    }
  } catch (error) {
    if (!mine.stopped) show(error);
  } finally {
    busy(null);
    job = null;
    at("files").value = "";
  }
}

at("stop").addEventListener("click", () => {
  if (job === null) return;
  job.stopped = true;
  if (job.id !== null) ask(`jobs/${job.id}`, {method: "DELETE"}).catch(show);
});

const GROUPS = [["micro", "candidates"], ["longer", "longer"], ["ignored", "ignored"]];

function report(found, id) {
  at("source").textContent = [found.source].flat().join(" and ");
  at("note").textContent = found.note;
  const movements = GROUPS.flatMap(([group, key]) => (found[key] || []).map((movement) => ({group, ...movement})));
  movements.sort((a, b) => a.seconds.onset - b.seconds.onset);
  const said = [...(found.notes || [])];
  const left = Object.entries(found.left_as_they_are || {});
  if (left.length) said.push(`In ${left.length} frames the head could not be followed; the first, ${left[0][0]}: ${left[0][1]}`);
  for (const line of (found.passed_over || []).slice(0, 5)) said.push(`Passed over: ${line}`);
  if (found.curve && !movements.some((movement) => movement.group !== "ignored")) {
    said.push(`No movement of the face stands out. It is fastest at ${found.highest_peak.seconds.toFixed(2)} s`);
  }
  at("said").replaceChildren(...said.map((line) => element("li", {textContent: line})));
  at("curve").hidden = !found.curve;
  at("chosen").hidden = true;
  at("movements").replaceChildren();
  at("result").hidden = false;
  const folder = `jobs/${id}/`;
  at("downloads").replaceChildren(
    element("a", {href: `${folder}candidates.json`, textContent: "all of it as JSON"}),
    element("a", {href: `${folder}micron.zip`, textContent: "JSON and pictures (zip)"}),
  );
  redraw = () => {};
  if (!found.curve) { choose(null, {pictures: found.pictures}, folder); return; }
  let spans = [], now = null;
  const buttons = movements.map((movement, i) => {
    const button = element("button", {type: "button", className: movement.group}, [
      `${movement.seconds.apex.toFixed(2)} s`,
      element("small", {textContent: named(movement)}),
    ]);
    button.addEventListener("click", () => pick(i));
    return button;
  });
  at("movements").replaceChildren(...buttons);
  redraw = () => {
    spans = plot(found, movements, pick);
    mark();
  };
  function mark() {
    spans.forEach((span, i) => span.classList.toggle("on", i === now));
  }
  function pick(chosen) {
    now = chosen;
    mark();
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    choose(movements[chosen], movements[chosen], folder);
  }
  redraw();
  const first = movements.findIndex((movement) => movement.group === "micro");
  if (movements.length) pick(Math.max(first, 0));
}

function named(movement) {
  const classes = Object.entries(movement.probabilities || {}).sort((a, b) => b[1] - a[1]);
  if (classes.length) return `${classes[0][0]} ${classes[0][1].toFixed(2)}`;
  return movement.group === "micro" ? "short" : movement.kind;
}

function choose(movement, {pictures}, folder) {
  at("chosen").hidden = false;
  at("classes").replaceChildren();
  at("what").textContent = at("why").textContent = "";
  if (movement !== null) {
    const {onset, apex, offset} = movement.seconds;
    at("what").textContent = `${onset.toFixed(2)} s to ${offset.toFixed(2)} s, widest at ${apex.toFixed(2)} s`;
    const names = {micro: "short enough for a micro-expression", longer: "longer", ignored: `ignored: ${movement.kind}`};
    at("why").textContent = `${names[movement.group]}; ${movement.reason}. Frames ${movement.frames.onset}, ` +
      `${movement.frames.apex}, ${movement.frames.offset}; it stands out by ${movement.strength.toFixed(1)} standard deviations.`;
    for (const [name, p] of Object.entries(movement.probabilities || {}).sort((a, b) => b[1] - a[1])) {
      at("classes").append(element("div", {className: "class"}, [
        element("span", {textContent: name}), element("meter", {value: p, title: name}),
        element("span", {textContent: p.toFixed(2)}),
      ]));
    }
  }
  const figures = (pictures || []).map(({title, file, range}) => element("figure", {}, [
    element("img", {src: folder + file, alt: title, width: 256, height: 256}),
    element("figcaption", {}, [title, element("small", {
      textContent: range ? `${range[0].toPrecision(2)} to ${range[1].toPrecision(2)}` : "",
    })]),
  ]));
  at("panels").replaceChildren(...(figures.length ? figures : ["Of this one no pictures were made: twenty stand out more."]));
}

function plot(found, movements, pick) {
  const width = Math.max(300, at("plot").clientWidth || 900), height = 240, left = 34, low = 216, top = 8;
  const end = (found.curve.length - 1) / found.fps || 1;
  const most = 1.1 * Math.max(found.threshold, ...found.curve);
  const x = (seconds) => left + (width - left - 8) * seconds / end;
  const y = (value) => low - (low - top) * value / most;
  const svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "speed of the face over time"});
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60].find((s) => end / s <= width / 70) || 120;
  for (let s = 0; s <= end + 1e-9; s += step) {
    svg.append(drawn("line", {class: "axis", x1: x(s), x2: x(s), y1: top, y2: low}));
    svg.append(drawn("text", {x: x(s), y: low + 16, "text-anchor": "middle"}, `${+s.toFixed(1)} s`));
  }
  svg.append(drawn("text", {x: left - 6, y: low, "text-anchor": "end"}, "0"));
  svg.append(drawn("text", {x: left - 6, y: y(found.threshold) + 4, "text-anchor": "end"}, found.threshold.toFixed(1)));
  const line = found.curve.map((value, i) => `${x(i / found.fps).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  svg.append(drawn("polyline", {class: "line", points: line}));
  svg.append(drawn("line", {class: "threshold", x1: left, x2: width - 8, y1: y(found.threshold), y2: y(found.threshold)}));
  const spans = movements.map((movement, i) => {
    const begin = x(movement.seconds.onset);
    const span = drawn("rect", {
      class: `span ${movement.group}`, x: begin, y: top, width: Math.max(8, x(movement.seconds.offset) - begin),
      height: low - top, tabindex: 0, role: "button", "aria-label": `movement at ${movement.seconds.apex.toFixed(2)} s`,
    });
    span.addEventListener("click", () => pick(i));
    span.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(i); }
    });
    svg.append(span);
    return span;
  });
  at("plot").replaceChildren(svg);
  return spans;
}

at("limits").textContent = `A file of at most ${about.megabytes} MB, a video of at most ${about.seconds} s.` +
  (about.classes ? "" : " No recognizer was given, so no class is named.");
window.addEventListener("resize", () => redraw());
at("files").accept = [...about.videos, ...about.images].join(",");
at("files").addEventListener("change", () => { if (at("files").files.length) look([...at("files").files]); });
at("synthetic").addEventListener("click", () => look([]));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) look([...event.dataTransfer.files]);
  });
}
