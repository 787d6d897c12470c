/* From a text and its spans to elements. Offsets count code points, JavaScript strings count
   UTF-16 units, so texts are cut as arrays of code points. Text only ever enters the page as text
   nodes, never as markup. */

const DEPTHS = 4;

/** The text as runs of {text, span}, span being null between spans; spans are in order. */
export function cut(text, spans) {
  const points = Array.from(text);
  const runs = [];
  let position = 0;
  const push = (end, span) => {
    if (end > position) runs.push({ text: points.slice(position, end).join(""), span });
    position = Math.max(position, end);
  };
  for (const span of spans) {
    push(span.start, null);
    push(span.end, span);
  }
  push(points.length, null);
  return runs;
}

/** A weight with its sign, as in "+1.24". */
export function signed(weight) {
  return `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)}`;
}

/** What a span does, in words. */
export function inWords(span, target) {
  if (span.effect === "neutral") return `neutral for ${target}, ${signed(span.weight)}`;
  const strength = span.strength === "high" ? "strongly" : "slightly";
  return `${strength} ${span.effect} ${target}, ${signed(span.weight)} log-odds`;
}

/** Fills `parent` with the text, its spans as marks; returns the marks. */
export function highlight(parent, text, spans, target) {
  const strongest = spans.reduce((most, span) => Math.max(most, Math.abs(span.weight)), 1e-9);
  const marks = [];
  const nodes = cut(text, spans).map((run) => {
    if (run.span === null) return document.createTextNode(run.text);
    const mark = document.createElement("mark");
    mark.className = `${run.span.effect} ${run.span.strength}`;
    mark.style.setProperty("--depth", String((DEPTHS * Math.abs(run.span.weight)) / strongest));
    mark.title = inWords(run.span, target);
    mark.textContent = run.text;
    mark.tabIndex = marks.length === 0 ? 0 : -1; // one stop for Tab; arrows move inside
    marks.push({ mark, span: run.span });
    return mark;
  });
  parent.replaceChildren(...nodes);
  return marks;
}
