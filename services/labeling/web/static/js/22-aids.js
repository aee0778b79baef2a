// Aids to reading, where a project has them; that they were used is recorded. Texts are only ever set as text.
(() => {
  const item = andon.item;
  const MAX_CELLS = 4_000_000;
  let differs = false;
  let timer = 0;

  // Sets an element's text with some stretches of it, [start, end), wrapped.
  function paint(element, text, stretches, name, class_name) {
    const nodes = [];
    let at = 0;
    for (const [start, end] of stretches) {
      if (start > at) nodes.push(text.slice(at, start));
      const wrapped = document.createElement(name);
      wrapped.className = class_name;
      wrapped.textContent = text.slice(start, end);
      nodes.push(wrapped);
      at = end;
    }
    nodes.push(text.slice(at));
    element.replaceChildren(...nodes);
  }

  const tokens = (text) => [...text.matchAll(/\S+/g)].map((found) => ({ word: found[0].toLowerCase(), start: found.index, end: found.index + found[0].length }));

  // Which words of `own` have no partner in the longest common subsequence with `base`.
  function only(own, base) {
    const [rows, columns] = [own.length, base.length];
    if (rows * columns > MAX_CELLS) return null;
    const width = columns + 1;
    const best = new Uint16Array((rows + 1) * width);
    for (let row = rows - 1; row >= 0; row -= 1) {
      for (let column = columns - 1; column >= 0; column -= 1) {
        best[row * width + column] = own[row].word === base[column].word
          ? best[(row + 1) * width + column + 1] + 1
          : Math.max(best[(row + 1) * width + column], best[row * width + column + 1]);
      }
    }
    const alone = [];
    let [row, column] = [0, 0];
    while (row < rows) {
      if (column < columns && own[row].word === base[column].word) {
        row += 1;
        column += 1;
      } else if (column < columns && best[row * width + column + 1] >= best[(row + 1) * width + column]) {
        column += 1;
      } else {
        alone.push([own[row].start, own[row].end]);
        row += 1;
      }
    }
    return alone;
  }

  function draw() {
    const texts = item.all("[data-slot]").map((slot) => [slot.dataset.slot, slot.querySelector("[data-text]")]);
    const select = item.form.querySelector("#difference-base");
    for (const [letter, element] of texts) {
      const text = element.textContent;
      const base = select ? select.value : texts.find(([other]) => other !== letter)[0];
      const against = texts.find(([other]) => other === base)[1].textContent;
      const alone = !differs || letter === base ? [] : only(tokens(text), tokens(against));
      if (!alone) andon.say("These texts are too long to compare word by word.");
      paint(element, text, alone || [], "span", "only-here");
    }
    item.form.querySelector("[data-differences]").setAttribute("aria-pressed", String(differs));
  }

  const aids = {
    mount() {
      differs = false;
    },
    toggle() {
      if (!item.form || !item.form.matches("[data-aids]")) return;
      differs = !differs;
      if (differs) item.use("word_differences");
      draw();
      andon.say(differs ? "Words that only one of them has are underlined." : "Word differences are off.");
    },
  };
  item.parts.push(aids);
  item.aids = aids;

  function places(text, wanted) {
    const found = [];
    const lower = text.toLowerCase();
    for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, at + wanted.length)) found.push([at, at + wanted.length]);
    return found;
  }
  function lookUp() {
    const selection = document.getSelection();
    const post = document.querySelector("[data-post]");
    if (!item.form || !item.form.matches("[data-aids]") || !post || selection.isCollapsed) return;
    const from = selection.anchorNode.nodeType === Node.ELEMENT_NODE ? selection.anchorNode : selection.anchorNode.parentElement;
    if (!from || !from.closest("[data-text]")) return;
    const wanted = selection.toString().trim().toLowerCase();
    if (wanted.length < 3 || wanted.length > 300) return;
    const text = post.textContent;
    let found = places(text, wanted);
    if (!found.length) {
      const words = new Set(wanted.split(/[^\p{L}\p{N}]+/u).filter((word) => word.length > 3));
      found = tokens(text).filter(({ word }) => words.has(word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, ""))).map(({ start, end }) => [start, end]);
    }
    paint(post, text, found, "mark", "");
    item.use("look_up");
    item.status(found.length ? `${found.length} ${found.length === 1 ? "place" : "places"} in the post` : "Not in the post in these words");
    const pane = post.closest(".post-pane");
    const first = post.querySelector("mark");
    if (first && pane.scrollHeight > pane.clientHeight) pane.scrollTop += first.getBoundingClientRect().top - pane.getBoundingClientRect().top - pane.clientHeight / 3;
  }
  document.addEventListener("selectionchange", () => {
    clearTimeout(timer);
    timer = setTimeout(lookUp, 200);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-differences]")) aids.toggle();
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "difference-base" && differs) draw();
  });
})();
