"use strict";
// Answers are kept in this browser under the name of the page, and saved as the table that mlic pack reads.
const content = JSON.parse(document.getElementById("content").textContent);
const files = Object.keys(content.images), kept = "mlic-review-" + content.id;
const part = id => document.getElementById(id);
let state = { answers: {}, at: 0, label: 0, done: [] };
try { state = { ...state, ...JSON.parse(localStorage.getItem(kept) || "{}") }; } catch (error) { /* kept by another version */ }
const keep = () => { try { localStorage.setItem(kept, JSON.stringify(state)); } catch (error) { part("progress").dataset.unkept = "1"; } };
const name = (file, label) => file + "\n" + label;
const answer = (file, label) => state.answers[name(file, label)];
const questions = () => content.images[files[state.at]];
const isDecided = file => content.images[file].every(question => answer(file, question.label) !== undefined);

function give(file, label, value) {
  state.done.push([state.at, state.label, name(file, label), state.answers[name(file, label)]]);
  state.answers[name(file, label)] = value;
}

function decide(value) {
  give(files[state.at], questions()[state.label].label, value);
  if (state.label + 1 < questions().length) state.label += 1;
  else if (isDecided(files[state.at])) go(1);
  show();
}

function accept() {
  const open = questions().filter(question => answer(files[state.at], question.label) === undefined);
  for (const question of open) give(files[state.at], question.label, question.suggestion || "?");
  go(1);
  show();
}

function go(step) {
  const next = state.at + step;
  if (next >= 0 && next < files.length) { state.at = next; state.label = 0; }
}

function undo() {
  const last = state.done.pop();
  if (!last) return;
  [state.at, state.label] = last;
  if (last[3] === undefined || last[3] === null) delete state.answers[last[2]]; else state.answers[last[2]] = last[3];
  show();
}

function show() {
  const file = files[state.at], decided = files.filter(isDecided).length;
  part("progress").textContent = `image ${state.at + 1} of ${files.length}, ${decided} decided` +
    (part("progress").dataset.unkept ? "; this browser keeps nothing, so save before you close the page" : "");
  part("bar").max = files.length;
  part("bar").value = decided;
  part("picture").src = content.pictures[file];
  part("picture").alt = content.pictures[file] ? `The image ${file}` : `${file} cannot be decoded`;
  part("file").textContent = file;
  const list = part("labels");
  list.replaceChildren(...questions().map((question, number) => row(file, question, number)));
  list.children[state.label].scrollIntoView({ block: "nearest" });
  keep();
}

function row(file, question, number) {
  const line = document.createElement("div"), title = document.createElement("b"), why = document.createElement("small");
  line.className = "label";
  line.setAttribute("role", "option");
  line.setAttribute("aria-selected", String(number === state.label));
  title.textContent = question.label;
  const buttons = document.createElement("span");
  buttons.className = "answers";
  for (const [value, text] of [["1", "yes"], ["0", "no"], ["?", "?"]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.className = value === question.suggestion ? "suggested" : "";
    button.setAttribute("aria-pressed", String(answer(file, question.label) === value));
    button.setAttribute("aria-label", `${question.label}: ${text === "?" ? "cannot tell" : text}`);
    button.onclick = event => { event.stopPropagation(); state.label = number; decide(value); };
    buttons.append(button, " ");
  }
  const given = { "1": "given", "0": "not given", "-1": "given as unknown" }[question.given];
  why.textContent = [given, question.reason].filter(Boolean).join("; ");
  line.append(title, buttons, why);
  line.onclick = () => { state.label = number; show(); };
  return line;
}

const cell = (text, mark) => new RegExp(`[${mark}"\r\n]`).test(text) ? `"${text.replaceAll('"', '""')}"` : text;

function table() {
  if (content.corrects) {
    const rows = content.rows.map(row => content.columns.map(column => cell(
      (column === "verdict" && answer(row.Filename, row.label)) || row[column] || "", "\t")).join("\t"));
    return [content.columns.join("\t"), ...rows].join("\n") + "\n";
  }
  const seen = files.filter(file => content.labels.some(label => answer(file, label) !== undefined));
  const rows = seen.map(file => [file, ...content.labels.map(label => {
    const value = answer(file, label);
    return value === "1" || value === "0" ? value : "nan";
  })].map(text => cell(text, ",")).join(","));
  return [["image", ...content.labels].map(text => cell(text, ",")).join(","), ...rows].join("\n") + "\n";
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/plain;charset=utf-8" }));
  link.download = content.saved_as;
  link.click();
}

const keys = {
  "1": () => decide("1"), "0": () => decide("0"), "?": () => decide("?"), "Enter": accept, "u": undo, "s": save,
  "ArrowRight": () => { go(1); show(); }, "ArrowLeft": () => { go(-1); show(); },
  "n": () => { go(1); show(); }, "p": () => { go(-1); show(); },
  "ArrowDown": () => { state.label = Math.min(state.label + 1, questions().length - 1); show(); },
  "ArrowUp": () => { state.label = Math.max(state.label - 1, 0); show(); },
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  if (event.key === "Enter" && event.target.tagName === "BUTTON") return;
  event.preventDefault();
  keys[event.key]();
});
part("back").onclick = keys.ArrowLeft;
part("next").onclick = keys.ArrowRight;
part("accept").onclick = accept;
part("undo").onclick = undo;
part("save").onclick = save;
state.at = Math.min(state.at, files.length - 1);
state.label = Math.min(state.label, questions().length - 1);
show();
