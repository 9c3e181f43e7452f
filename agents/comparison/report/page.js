"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

/* Legends: one memory alone, in every figure. */
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const alone = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.memory;
    for (const other of document.querySelectorAll(".legend button"))
      other.setAttribute("aria-pressed", String(other.dataset.memory === alone));
    for (const line of document.querySelectorAll(".line"))
      line.classList.toggle("dim", alone !== null && line.dataset.memory !== alone);
  });
}

/* Curves: their values under the pointer. */
for (const chart of document.querySelectorAll("[data-curves]")) {
  const { steps, memories } = data.curves[chart.dataset.curves];
  const [start, end, high] = ["start", "end", "high"].map(key => Number(chart.dataset[key]));
  const cursor = chart.querySelector(".cursor");
  const readout = chart.parentElement.querySelector(".readout");

  chart.addEventListener("pointermove", event => {
    const scale = chart.getScreenCTM();
    const step = ((event.clientX - scale.e) / scale.a - start) / (end - start) * high;
    const nearest = steps.reduce((best, other, i) => Math.abs(other - step) < Math.abs(steps[best] - step) ? i : best, 0);
    const x = start + steps[nearest] / high * (end - start);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const rows = Object.entries(memories).map(([memory, [mean, low, high]]) => {
      const row = document.createElement("div");
      const name = chart.parentElement.querySelector(`[data-memory="${CSS.escape(memory)}"] .memory`).cloneNode(true);
      row.append(name, `${mean[nearest]} (${low[nearest]} to ${high[nearest]})`);
      return row;
    });
    const title = document.createElement("b");
    title.textContent = `${steps[nearest].toLocaleString("en")} steps`;
    readout.replaceChildren(title, ...rows);
    readout.hidden = false;
    const left = x * scale.a + scale.e - chart.parentElement.getBoundingClientRect().left;
    const flips = left > chart.parentElement.clientWidth / 2;
    readout.style.left = `${flips ? left - readout.offsetWidth - 12 : left + 12}px`;
  });
  chart.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.hidden = true;
  });
}

/* The player: one episode of each memory, all of it at the same step. */
const player = document.getElementById("player");
if (player !== null) startPlayer();

function startPlayer() {
  const find = selector => player.querySelector(selector);
  const slider = find(".slider");
  const loaded = data.episodes.map(episode => load(episode));  // promises
  let shown = null, timer = null;

  async function choose(index) {
    const color = find(`[data-episode="${index}"] .memory`).classList[1];
    for (const tab of player.querySelectorAll("[data-episode]"))
      tab.setAttribute("aria-pressed", String(tab.dataset.episode === String(index)));
    const episode = await loaded[index];
    shown = { episode, update: build(player, episode, color, go) };
    slider.max = episode.frames.count - 1;
    go(Math.min(Number(slider.value), Number(slider.max)));
    player.dataset.ready = episode.memory;
  }

  function go(step) {
    slider.value = step;
    show();
  }

  function show() {
    const step = Number(slider.value);
    const text = `step ${step} of ${slider.max}`;
    find(".step").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    shown?.update(step);
  }

  function play(starts) {
    clearInterval(timer);
    timer = null;
    if (starts) {
      if (slider.value === slider.max) go(0);
      timer = setInterval(() => {
        if (Number(slider.value) < Number(slider.max)) go(Number(slider.value) + 1);
        else play(false);
      }, 300);
    }
    find(".play").textContent = starts ? "❚❚" : "▶";
    find(".play").setAttribute("aria-label", starts ? "Pause" : "Play");
  }

  slider.addEventListener("input", () => { play(false); show(); });
  find(".play").addEventListener("click", () => play(timer === null));
  for (const tab of player.querySelectorAll("[data-episode]"))
    tab.addEventListener("click", () => choose(tab.dataset.episode));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  choose(0);
}

/* Unpack what agents/comparison/report/player.py has packed. */
async function load(episode) {
  const packed = Uint8Array.from(atob(episode.bytes), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Int8Array(await new Response(stream).arrayBuffer());
  let offset = 0;
  const parts = episode.parts.map(part => {
    const [rows, columns] = part.shape;
    const size = rows * columns;
    const values = bytes.subarray(offset, offset += size * episode.steps);
    return { ...part, rows, columns, at: step => values.subarray(step * size, (step + 1) * size) };
  });
  const [frames, views] = await Promise.all([loadSheet(episode.frames, episode), loadSheet(episode.views, episode)]);
  return { ...episode, parts, frames, views };
}

async function loadSheet(sheet, episode) {
  if (sheet === null) return null;
  const image = new Image();
  image.src = sheet.source;
  await image.decode();
  const { width, height, columns } = sheet;
  const draw = (canvas, index) => {
    canvas.width = width;
    canvas.height = height;
    const x = index % columns * width, y = Math.floor(index / columns) * height;
    canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
  };
  return { count: sheet.count, draw };
}

/* Lay an episode out in the player, and return what shows a step of it. */
function build(player, episode, color, go) {
  const find = selector => player.querySelector(selector);
  const last = episode.steps - 1;
  const updates = [
    step => episode.frames.draw(find(".frame"), step),
    step => showNow(find(".now"), episode, step),
    buildOdds(find(".odds"), episode, color),
    buildMatrices(find(".memories-now"), episode),
    buildStrips(find(".strips"), episode, color, go),
    buildRecall(find(".recall"), episode, go),
  ];
  find(".view").hidden = episode.views === null;
  if (episode.views !== null) updates.push(step => episode.views.draw(find(".view"), step));
  return step => updates.forEach(update => update(step, Math.min(step, last)));
}

function showNow(list, episode, step) {
  const total = episode.rewards.slice(0, step).reduce((sum, reward) => sum + reward, 0);
  const facts = { "action": episode.actions[step] ?? (episode.cut ? "cut off here" : episode.outcome) };
  if (step < episode.steps) facts.value = episode.values[step]?.toFixed(2);
  facts["return so far"] = total.toFixed(2);
  list.replaceChildren(...Object.entries(facts).flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));
}

function buildOdds(box, episode, color) {
  box.replaceChildren();
  box.className = `odds ${color}`;
  if (episode.choices === null) return () => {};
  const bars = episode.choices.map(choice => {
    const name = make("span", {}, choice);
    const bar = make("i");
    const number = make("span");
    box.append(name, make("div", { className: "track" }, bar), number);
    bar.style.display = "block";
    return { name, bar, number };
  });
  return (step, clamped) => bars.forEach(({ name, bar, number }, action) => {
    const probability = episode.probabilities[clamped][action];
    bar.style.transform = `scaleX(${probability})`;
    number.textContent = probability.toFixed(2);
    name.classList.toggle("chosen", episode.actions[step] === episode.choices[action]);
  });
}

const GROUPS = {
  state: ["Fast weights after this step", "Activations after this step"],
  written: ["Written in this step"],
  changed: ["Changed in this step"],
  attended: ["Attended to in this step"],
};

function buildMatrices(box, episode) {
  box.replaceChildren();
  const parts = episode.parts.filter(part => part.group in GROUPS);
  if (!parts.length) {
    box.append(make("p", { className: "empty" }, "This agent has no memory: each step it sees only what is before it."));
    return () => {};
  }
  const updates = [];
  for (const group of new Set(parts.map(part => part.group))) {
    const row = make("div", { className: "matrices" });
    box.append(make("h3", {}, GROUPS[group][group === "state" && episode.beta === null ? 1 : 0]), row);
    parts.filter(part => part.group === group).forEach((part, head) => {
      const canvas = make("canvas");
      const caption = make("figcaption");
      row.append(make("figure", {}, canvas, caption));
      updates.push((step, clamped) => {
        paint(canvas, part.at(clamped), part.rows, part.columns);
        caption.textContent = group === "written"
          ? `beta ${episode.beta[clamped][head]?.toFixed(2)}, surprise ${episode.surprise[clamped][head]?.toFixed(2)}`
          : part.title;
      });
    });
  }
  return (step, clamped) => updates.forEach(update => update(step, clamped));
}

/* Curves over the episode. A click on one goes to that step. */
function buildStrips(box, episode, color, go) {
  const series = { "value": episode.values, "change of memory": episode.parts.length ? episode.changes : null,
                   "write strength (beta)": episode.beta, "surprise": episode.surprise };
  const cursors = [];
  box.replaceChildren();
  for (const [label, values] of Object.entries(series)) {
    if (values === null) continue;
    const svg = draw("svg", { viewBox: `0 0 ${episode.frames.count} 44`, preserveAspectRatio: "none", class: color });
    const lines = Array.isArray(values[0]) ? values[0].map((_, head) => values.map(row => row[head])) : [values];
    const flat = lines.flat().filter(value => value !== null);
    const low = Math.min(0, ...flat), high = Math.max(low + 1e-9, ...flat);
    for (const line of lines) {
      const points = line.map((value, step) => `${step + .5} ${40 - 36 * ((value ?? 0) - low) / (high - low)}`);
      svg.append(draw("path", { d: `M${points.join("L")}`, class: lines.length > 1 ? "many" : "one" }));
    }
    const cursor = draw("line", { y1: 0, y2: 44 });
    svg.append(cursor);
    svg.addEventListener("click", event => {
      const { left, width } = svg.getBoundingClientRect();
      go(Math.min(episode.frames.count - 1, Math.floor((event.clientX - left) / width * episode.frames.count)));
    });
    cursors.push(cursor);
    box.append(make("div", { className: "strip" }, make("span", {}, label), svg));
  }
  return step => cursors.forEach(cursor => {
    cursor.setAttribute("x1", step + .5);
    cursor.setAttribute("x2", step + .5);
  });
}

const MOST_SOURCES = 6;

function buildRecall(box, episode, go) {
  const map = episode.parts.find(part => part.group === "retrieval");
  box.hidden = map === undefined;
  if (map === undefined) return () => {};
  const canvas = box.querySelector(".map"), list = box.querySelector(".sources"), title = box.querySelector(".recall-title");
  const whole = new Int8Array(episode.steps * episode.steps);
  for (let step = 0; step < episode.steps; step++) whole.set(map.at(step), step * episode.steps);
  canvas.onclick = event => {
    const { top, height } = canvas.getBoundingClientRect();
    go(Math.floor((event.clientY - top) / height * episode.steps));
  };
  return (step, clamped) => {
    paint(canvas, whole, episode.steps, episode.steps, clamped);
    const amounts = Array.from(map.at(clamped), value => (value / 127) ** 2);
    const all = amounts.reduce((sum, amount) => sum + amount, 0) || 1;
    const sources = amounts.map((amount, source) => ({ source, share: amount / all }))
      .filter(({ share }) => share > .02).sort((a, b) => b.share - a.share).slice(0, MOST_SOURCES);
    title.textContent = `What is read at step ${clamped} was written at`;
    list.replaceChildren(...sources.map(({ source, share }) => {
      const thumbnail = make("canvas"), amount = make("div", { className: "amount" });
      (episode.views ?? episode.frames).draw(thumbnail, source);
      amount.style.width = `${100 * share}%`;
      const button = make("button", { type: "button" }, thumbnail, `step ${source}: ${Math.round(100 * share)} %`, amount);
      button.addEventListener("click", () => go(source));
      return make("li", {}, button);
    }));
  };
}

/* Signed bytes in colour: zero is the page, both signs leave it. `marked` is a row that stands out. */
function paint(canvas, values, rows, columns, marked = null) {
  const style = getComputedStyle(canvas);
  const anchors = ["minus-2", "minus", "zero", "plus", "plus-2"].map(name => rgb(style.getPropertyValue(`--map-${name}`)));
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, index) => {
    const position = (value / 127 + 1) * 2;
    const lower = Math.min(3, Math.floor(position));
    const dimmed = marked !== null && Math.floor(index / columns) !== marked ? .45 : 1;
    for (let channel = 0; channel < 3; channel++) {
      const level = anchors[lower][channel] + (position - lower) * (anchors[lower + 1][channel] - anchors[lower][channel]);
      pixels.data[4 * index + channel] = anchors[2][channel] + dimmed * (level - anchors[2][channel]);
    }
    pixels.data[4 * index + 3] = 255;
  });
  context.putImageData(pixels, 0, 0);
}

function rgb(color) {
  const hex = color.trim().slice(1);
  const pairs = hex.length === 3 ? [...hex].map(digit => digit + digit) : hex.match(/../g);
  return pairs.map(pair => parseInt(pair, 16));
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
