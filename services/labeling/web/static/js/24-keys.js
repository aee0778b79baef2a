// Keys. This table is all there is: it drives the code below and the page that explains it.
(() => {
  const item = andon.item;
  const REPEAT_MS = 300;
  const DIGITS = [..."123456789"];
  const skip = () => document.querySelector("[data-skip]");
  const isSkipping = () => Boolean(skip() && skip().open);
  const click = (selector) => {
    const element = document.querySelector(selector);
    if (element) element.click();
    return Boolean(element);
  };
  const axis = (event) => event && event.target.closest && event.target.closest("[data-axis]");
  const has = (selector) => Boolean(document.querySelector(selector));

  // keys, how they are shown, what they do; `when` they hold; `typing`: also inside a text field; `repeats`.
  const KEYS = [
    { keys: DIGITS, shown: "1 – 5", skip: true, when: isSkipping, says: "Choose the reason, while you skip", run: (key) => click(`#skip-form label:nth-of-type(${key}) input`) },
    { keys: ["Enter"], skip: true, when: isSkipping, run: sendSkip },
    { keys: ["Ctrl+Enter"], skip: true, typing: true, when: isSkipping, run: sendSkip },
    { keys: DIGITS.slice(0, 7), shown: "1 – 7", when: (event) => item.form && has("[data-axis]") && (!event || axis(event)), says: "Rate, on the scale that has the focus", run: rate },
    { keys: ["g"], shown: "G", when: () => has("[data-axis]"), says: "Go to the next open rating", run: nextAxis },
    { keys: DIGITS, shown: "1 – 9", when: () => item.kind() === "pair", says: "Say which is better: 1 is A far better, 9 is B far better", run: choose },
    { keys: ["ArrowLeft", "ArrowRight"], shown: "← →", when: (event) => item.kind() === "pair" && !axis(event), says: "One step toward A or toward B", run: step, repeats: true },
    { keys: [..."abcdefghi"], shown: "A – I", when: () => item.kind() === "rank", says: "Put it next in the order, best first", run: (key) => item.letters().includes(key.toUpperCase()) && item.ranking.take(key.toUpperCase()) },
    { keys: ["="], shown: "=", when: () => item.kind() === "rank", says: "The next one is as good as the last", run: () => item.ranking.tie() },
    { keys: ["Backspace"], shown: "⌫", when: () => item.kind() === "rank", says: "Take the last one back", run: () => item.ranking.untake(), repeats: true },
    { keys: ["Enter"], shown: "Enter", when: (event) => !event || !event.target.closest("a, button, summary, select"), says: "Submit, or go on", run: enter },
    { keys: ["Ctrl+Enter"], shown: "Ctrl Enter", says: "Submit, also while you write", typing: true, run: enter },
    { keys: ["o"], shown: "O", when: () => has(".unfold"), says: "Open the next long text", run: () => click(".unfold") },
    { keys: ["w"], shown: "W", when: () => has("[data-differences]"), says: "Word differences", run: () => item.aids.toggle() },
    { keys: ["n"], shown: "N", when: () => has("#note"), says: "Write a note", run: () => document.getElementById("note").focus() },
    { keys: ["s"], shown: "S", when: () => Boolean(skip()), says: "Skip, with a reason", run: openSkip },
    { keys: ["p"], shown: "P", when: () => has("[data-back]"), says: "Back to the previous answer", run: () => click("[data-back]") },
    { keys: ["r"], shown: "R", when: () => has("[data-drawer]"), says: "Read the instructions", run: () => click("[data-drawer]") },
    { keys: ["?"], shown: "?", says: "These keys", always: true, run: help },
    { keys: ["Escape"], shown: "Esc", says: "Leave a field, close what is open", skip: true, typing: true, run: escape },
  ];

  function choose(key) {
    const mark = item.form.querySelector(`[name=preference][value="${key}"]`);
    if (!mark) return andon.say("This project asks you to choose a side.");
    mark.checked = true;
    item.changed();
    return andon.say(mark.dataset.words);
  }
  function step(key) {
    const marks = item.all("[name=preference]");
    const at = marks.findIndex((mark) => mark.checked);
    const toward = key === "ArrowRight" ? 1 : -1;
    const middle = marks.length / 2 - 0.5;
    const to = at < 0 ? Math.round(middle + toward * (marks.length % 2 ? 1 : 0.5)) : at + toward;
    if (to < 0 || to >= marks.length) return;
    choose(marks[to].value);
    if (document.activeElement && document.activeElement.name === "preference") marks[to].focus();
  }
  function rate(key, event) {
    const scale = axis(event);
    scale.querySelector(`[value="${key}"]`).checked = true;
    item.changed();
    const scales = item.all("[data-axis]");
    const next = scales[scales.indexOf(scale) + 1];
    if (next) (next.querySelector(":checked") || next.querySelector("input")).focus();
  }
  function nextAxis() {
    const open = item.all("[data-axis]").find((scale) => !scale.querySelector(":checked"));
    if (open) open.querySelector("input").focus();
  }
  function enter() {
    if (item.form) item.submit();
    else click("[data-next]");
  }
  function sendSkip() {
    document.getElementById("skip-form").requestSubmit();
  }
  function openSkip() {
    skip().open = true;
    skip().querySelector("input[type=radio]").focus();
  }
  function escape(_key, event) {
    if (isSkipping()) {
      skip().open = false;
      skip().querySelector("summary").focus();
    } else if (event.target.matches("textarea, input, select")) {
      event.target.blur();
      document.querySelector("main").focus({ preventScroll: true });
    }
    return false;
  }

  // ---- Dialogs
  function dialog(class_name, title, ...nodes) {
    const box = document.createElement("dialog");
    box.className = class_name;
    box.setAttribute("aria-labelledby", "dialog-title");
    const head = Object.assign(document.createElement("div"), { className: "dialog-head" });
    const close = Object.assign(document.createElement("button"), { type: "button", className: "button", textContent: "Close" });
    close.addEventListener("click", () => box.close());
    head.append(Object.assign(document.createElement("h2"), { id: "dialog-title", textContent: title }), close);
    box.append(head, ...nodes);
    box.addEventListener("close", () => box.remove());
    box.addEventListener("click", (event) => {
      if (event.target === box) box.close();
    });
    document.body.append(box);
    box.showModal();
    return box;
  }
  function help() {
    if (has("dialog[open]")) return;
    const list = Object.assign(document.createElement("dl"), { className: "key-list" });
    for (const entry of KEYS) {
      if (!entry.shown || (entry.when && entry.when !== isSkipping && !entry.when(null))) continue;
      const term = document.createElement("dt");
      term.append(Object.assign(document.createElement("kbd"), { textContent: entry.shown }));
      list.append(term, Object.assign(document.createElement("dd"), { textContent: entry.says }));
    }
    const label = Object.assign(document.createElement("label"), { className: "check-line" });
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: areOn() });
    box.addEventListener("change", () => localStorage.setItem("andon.keys", box.checked ? "on" : "off"));
    label.append(box, "Use single keys");
    dialog("work-help", "Keys", list, label);
  }
  async function drawer(link) {
    const text = Object.assign(document.createElement("div"), { textContent: "Loading …" });
    dialog("work-drawer", "Instructions", text);
    try {
      const answer = await fetch(link.href, { credentials: "same-origin" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      text.replaceWith(document.adoptNode(page.querySelector("[data-instructions]")));
    } catch {
      text.textContent = "They could not be loaded. Try again when you are online.";
    }
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-drawer]");
    if (link && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      drawer(link);
    } else if (event.target.closest("[data-help]")) {
      help();
    } else if (isSkipping() && !skip().contains(event.target)) {
      skip().open = false;
    }
    // A mouse leaves the focus on a button, where Enter would press it again instead of submitting.
    if (event.detail && event.target.closest("#answer-form button")) document.querySelector("main").focus({ preventScroll: true });
  });

  // ---- From a key to its entry
  const areOn = () => localStorage.getItem("andon.keys") !== "off";
  const isTyping = (element) => element.matches("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])");
  let last = { name: "", at_ms: 0 };
  document.addEventListener("keydown", (event) => {
    if (!document.body.classList.contains("work") || event.isComposing || event.keyCode === 229 || event.altKey) return;
    if (has("dialog[open], details.cord[open], details.account[open]")) return;
    const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const name = event.ctrlKey || event.metaKey ? `Ctrl+${letter}` : letter;
    const typing = isTyping(event.target);
    const entry = KEYS.find((one) => one.keys.includes(name) && (one.skip || !isSkipping()) && (!typing || one.typing) && (areOn() || one.typing || one.always) && (!one.when || one.when(event)));
    if (!entry) return;
    const is_repeat = event.repeat || (name === last.name && event.timeStamp - last.at_ms < REPEAT_MS);
    last = { name, at_ms: event.timeStamp };
    if (is_repeat && !entry.repeats) event.preventDefault();
    else if (entry.run(name, event) !== false) event.preventDefault();
  });
})();
