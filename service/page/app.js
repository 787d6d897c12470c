/* The page: one question at a time, its answer, and another look at it. */
import { EXAMPLES } from "./examples.js";
import { highlight, inWords } from "./highlight.js";

const WORDS_UP_TO = 20000; // code points; beyond, every word would be too much for a page

const $ = (id) => document.getElementById(id);
const state = { text: "", answer: null, view: "rationale", marks: [] };
let running = null; // the AbortController of the request under way

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function percent(score) {
  const value = 100 * score;
  if (value > 99.9) return "> 99.9 %";
  if (value < 0.1) return "< 0.1 %";
  return `${value >= 99 || value < 1 ? value.toFixed(1) : Math.round(value)} %`;
}

/* Asking */

async function post(body, signal) {
  let response;
  try {
    response = await fetch("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response.json();
  throw new Error(await problemInWords(response));
}

async function problemInWords(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // A gateway may answer with a page of its own.
  }
  const said = problem.detail ?? problem.title ?? `the server answered with status ${response.status}`;
  const wait = response.headers.get("Retry-After");
  return `${said[0].toUpperCase()}${said.slice(1)}.${wait ? ` Try again in ${wait} s.` : ""}`;
}

async function ask(text, target) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  setBusy(true);
  try {
    const body = { text, words: Array.from(text).length <= WORDS_UP_TO };
    if (target) body.target = target;
    const answer = await post(body, mine.signal);
    state.text = text;
    state.answer = answer;
    showAnswer();
    reveal();
  } catch (error) {
    if (error.name === "AbortError") return;
    showError(error.message);
    reveal();
  } finally {
    if (running === mine) {
      running = null;
      setBusy(false);
    }
  }
}

function setBusy(busy) {
  $("answer").setAttribute("aria-busy", String(busy));
  $("explain").setAttribute("aria-disabled", String(busy));
}

/* Showing */

/* On a narrow screen the answer is below the question, out of sight. */
function reveal() {
  const below = $("answer").getBoundingClientRect().top > 0.5 * window.innerHeight;
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (below) $("answer").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("empty").hidden = true;
  $("result").hidden = true;
}

function showAnswer() {
  const { answer } = state;
  $("error").hidden = true;
  $("empty").hidden = true;
  $("result").hidden = false;
  $("label").textContent = answer.label;
  $("score").textContent = percent(answer.score);
  showScores(answer);
  showWhy(answer);
  $("json").textContent = JSON.stringify({ ...answer, words: undefined }, null, 2);
  for (const node of document.querySelectorAll(".legend .target")) node.textContent = answer.target;
  showText();
  const found = answer.rationale.length;
  $("status").textContent =
    `${answer.label}, ${percent(answer.score)}. ` +
    `${found} highlighted ${found === 1 ? "passage" : "passages"} for and against ${answer.target}.`;
}

function showScores(answer) {
  const rows = Object.entries(answer.scores).map(([label, score]) => {
    const row = element("div", undefined, label === answer.label ? "chosen" : "");
    const meter = element("dd", undefined, "meter");
    const fill = element("i");
    fill.style.setProperty("--share", String(score));
    meter.append(fill);
    meter.setAttribute("aria-hidden", "true");
    row.append(element("dt", label), meter, element("dd", percent(score)));
    return row;
  });
  $("scores").replaceChildren(...rows);
}

/* With two labels a switch, with more a list: which label the words are weighed for. */
function showWhy(answer) {
  const others = Object.keys(answer.scores).filter((label) => label !== answer.label);
  const focused = $("why").contains(document.activeElement);
  const control = others.length === 1 ? whySwitch(answer, others[0]) : whySelect(answer, others);
  $("why").replaceChildren(...(others.length ? [control] : []));
  if (focused) ($("why").querySelector("select") ?? control).focus();
}

function whySwitch(answer, other) {
  const on = answer.target === other;
  const button = element("button", "Why not ", "switch");
  button.type = "button";
  button.id = "why-not";
  button.setAttribute("role", "switch");
  button.setAttribute("aria-checked", String(on));
  button.append(element("b", other), "?");
  const label = element("span");
  label.append(...button.childNodes);
  button.append(label);
  button.addEventListener("click", () => ask(state.text, on ? null : other));
  return button;
}

function whySelect(answer, others) {
  const label = element("label", "Why not ", "why-select");
  const select = element("select");
  select.id = "why-not";
  select.append(new Option("…", ""), ...others.map((name) => new Option(name, name)));
  select.value = answer.target === answer.label ? "" : answer.target;
  select.addEventListener("change", () => ask(state.text, select.value || null));
  label.append(select);
  return label;
}

function showText() {
  const { answer, text } = state;
  const everyWord = document.querySelector('input[name="view"][value="words"]');
  everyWord.disabled = answer.words === undefined;
  if (everyWord.disabled && state.view === "words") {
    state.view = "rationale";
    document.querySelector('input[name="view"][value="rationale"]').checked = true;
  }
  const coloured = (answer.words ?? []).filter((word) => word.effect !== "neutral");
  const spans = state.view === "words" ? coloured : answer.rationale;
  state.marks = highlight($("shown"), text, spans, answer.target);
  $("question").textContent = question(answer, spans.length);
  $("detail").replaceChildren();
}

function question(answer, found) {
  const asked = answer.target === answer.label ? `Why ${answer.target}?` : `Why not ${answer.target}?`;
  const windows = answer.windows > 1 ? ` The text was read in ${answer.windows} overlapping windows.` : "";
  const none = found === 0 ? " No words stand out." : "";
  return asked + none + windows;
}

function showDetail(entry) {
  const points = Array.from(entry.span.text);
  const text = points.length > 80 ? `${points.slice(0, 80).join("")}…` : entry.span.text;
  const effect = element("span", inWords(entry.span, state.answer.target), entry.span.effect);
  $("detail").replaceChildren(`“${text}” `, effect);
}

/* Keys and pointers */

function markAt(target) {
  return state.marks.findIndex((entry) => entry.mark === target);
}

function moveAmongMarks(event) {
  const here = markAt(event.target);
  const last = state.marks.length - 1;
  const goals = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last };
  const goal = goals[event.key];
  if (here < 0 || goal === undefined) return;
  event.preventDefault();
  const next = state.marks[Math.min(last, Math.max(0, goal))].mark;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function countCharacters() {
  const count = Array.from($("text").value).length;
  $("count").textContent = count ? `${count.toLocaleString("en")} characters` : "";
}

function submit(event) {
  event?.preventDefault();
  ask($("text").value, null);
}

function showExamples() {
  const items = EXAMPLES.map((example) => {
    const button = element("button", example.name);
    button.type = "button";
    button.addEventListener("click", () => {
      $("text").value = example.text;
      countCharacters();
      submit();
    });
    const item = element("li");
    item.append(button);
    return item;
  });
  $("examples").replaceChildren(...items);
}

async function showModel() {
  try {
    const response = await fetch("models");
    if (!response.ok) return;
    const [card] = (await response.json()).models;
    const language = card.card.language ? `, ${card.card.language}` : "";
    $("model").textContent = `Model ${card.name} ${card.digest.slice(0, 12)}${language}`;
  } catch {
    // The page works without its footer.
  }
}

$("ask").addEventListener("submit", submit);
$("text").addEventListener("input", countCharacters);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});
$("shown").addEventListener("keydown", moveAmongMarks);
for (const name of ["focusin", "pointerover"]) {
  $("shown").addEventListener(name, (event) => {
    const index = markAt(event.target);
    if (index >= 0) showDetail(state.marks[index]);
  });
}
for (const input of document.querySelectorAll('input[name="view"]')) {
  input.addEventListener("change", () => {
    state.view = input.value;
    showText();
  });
}
showExamples();
countCharacters();
showModel();
