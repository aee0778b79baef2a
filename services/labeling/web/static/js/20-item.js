// The item on the page: what is missing in it, what is kept of it, and how long it took. Other files of the
// labeler's pages add themselves to `andon.item.parts`, whose mount(form) runs for each new item.
(() => {
  const IDLE_MS = 60_000;
  const DRAFT_AFTER_MS = 1000;
  const KEPT_MS = 7 * 86_400_000;
  const NOT_RESTORED = new Set(["csrf", "item", "nonce", "page", "instructions", "revision", "submitted_ms", "device"]);
  const PREFIX = "andon.draft.";

  const item = {
    form: null,
    parts: [],
    notice: "",
    field: (name) => item.form.elements.namedItem(name),
    all: (selector) => [...item.form.querySelectorAll(selector)],
    kind: () => (item.form ? item.form.dataset.kind : ""),
    letters: () => item.all("[data-slot]").map((slot) => slot.dataset.slot),
  };
  andon.item = item;

  let dirty = false;
  let timer = 0;
  let active_ms = 0;
  let last_ms = 0;

  // ---- Time: the page visible, and somebody there within the last minute.
  function tick() {
    const now_ms = Date.now();
    if (document.visibilityState === "visible" && last_ms) active_ms += Math.max(0, Math.min(now_ms - last_ms, IDLE_MS));
    last_ms = now_ms;
  }
  for (const name of ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "focus"]) {
    window.addEventListener(name, tick, { passive: true, capture: true });
  }

  // ---- What is missing, in words, and where.
  function lacking() {
    const kind = item.kind();
    if (kind === "reading") {
      const empty = item.all("textarea").find((box) => !box.value.trim());
      return empty && [`Say what ${empty.name.slice(-1)} tells you`, empty];
    }
    if (kind === "write" || kind === "edit") {
      const text = item.field("text");
      const original = document.querySelector("#slot-A .candidate-text");
      if (!text.value.trim()) return ["Write something", text];
      if (kind === "edit" && text.value.trim() === original.textContent.trim()) return ["Nothing is changed yet", text];
      return null;
    }
    const folded = item.all(".is-folded").map((text) => text.closest("[data-slot]").dataset.slot);
    if (folded.length) return [`Read all of ${folded.join(", ")} first`, item.form.querySelector(".unfold")];
    if (kind === "pair" && !item.form.querySelector("[name=preference]:checked")) {
      return [item.form.matches("[data-no-middle]") ? "Choose a side" : "Choose 1 to 9", item.form.querySelector("[name=preference]")];
    }
    if (kind === "rank") {
      const without = item.letters().filter((letter) => !item.field(`rank_${letter}`).value);
      if (without.length) return [`Without a place: ${without.join(", ")}`, item.form.querySelector("[data-pool] button:enabled")];
    }
    if (item.form.matches("[data-axes]")) {
      for (const slot of item.all("[data-slot]")) {
        if (slot.querySelector("[value=cannot_judge]:checked")) continue;
        const open = [...slot.querySelectorAll("[data-axis]")].find((axis) => !axis.querySelector(":checked"));
        if (open) return [`Rate ${slot.dataset.slot}: ${open.querySelector("legend").firstChild.textContent.toLowerCase()}`, open.querySelector("input")];
      }
    }
    return null;
  }
  item.lacking = lacking;

  // ---- The line in the bar. A problem is read aloud as well.
  item.status = (text, problem = false) => {
    const line = document.getElementById("bar-status");
    if (!line) return;
    line.textContent = text;
    line.classList.toggle("is-problem", problem);
    if (problem) andon.say(text);
  };
  item.refresh = () => {
    if (!item.form) return;
    const lack = lacking();
    const submit = document.querySelector("[data-submit]");
    if (submit) submit.disabled = Boolean(lack) || item.busy;
    const mark = item.form.querySelector("[name=preference]:checked");
    const said = lack ? lack[0] : mark ? mark.dataset.words : "Ready";
    item.status(item.notice ? `${item.notice} ${said}` : said);
    const count = item.form.querySelector("[data-count]");
    if (count) {
      const words = item.field("text").value.split(/\s+/).filter(Boolean).length;
      count.textContent = `${words} ${words === 1 ? "word" : "words"}`;
    }
  };

  // ---- Keeping what is entered: here at once, at the server after a second, by beacon when the page goes.
  const key = () => PREFIX + item.field("item").value;
  function stamp() {
    tick();
    item.field("active_ms").value = Math.min(active_ms, 86_400_000);
  }
  function fields() {
    return [...new FormData(item.form)].filter(([name]) => name !== "csrf" && name !== "nonce");
  }
  function remember(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      item.status("This browser keeps nothing; the server does.");
    }
  }
  item.changed = () => {
    if (!item.form) return;
    const first = item.field("first_ms");
    if (!first.value) first.value = Date.now();
    item.field("changes").value = Math.min(Number(item.field("changes").value) + 1, 1_000_000);
    item.field("revision").value = Number(item.field("revision").value) + 1;
    item.notice = "";
    item.keep();
    item.refresh();
  };
  item.keep = () => {
    stamp();
    dirty = true;
    remember(key(), JSON.stringify({ at: Date.now(), revision: Number(item.field("revision").value), fields: fields() }));
    clearTimeout(timer);
    if (item.form.dataset.draft) timer = setTimeout(send, DRAFT_AFTER_MS);
  };
  async function send() {
    if (!item.form || !dirty || item.busy) return;
    const form = item.form;
    dirty = false;
    try {
      await andon.post(form.dataset.draft, fields());
    } catch (error) {
      if (form !== item.form) return;
      dirty = true;
      if (error.status === 0) item.status("Offline. What you enter is kept on this device.", true);
    }
  }
  function leave() {
    tick();
    if (item.form && dirty && !item.busy && item.form.dataset.draft) {
      dirty = !andon.beacon(item.form.dataset.draft, fields());
    }
  }
  window.addEventListener("pagehide", leave);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") {
      last_ms = last_ms && Date.now() - last_ms < IDLE_MS ? last_ms : Date.now();
      active_ms += Date.now() - last_ms;
      leave();
    }
    last_ms = Date.now();
  });
  window.addEventListener("online", () => {
    if (item.form && dirty) send();
    item.refresh();
  });

  item.forget = (name) => {
    clearTimeout(timer);
    dirty = false;
    localStorage.removeItem(name);
  };
  item.key = key;
  item.stampSubmit = () => {
    stamp();
    item.field("submitted_ms").value = Date.now();
  };
  item.use = (aid) => {
    const used = item.field("aids");
    if (used.value.split(",").includes(aid)) return;
    used.value = used.value ? `${used.value},${aid}` : aid;
    item.keep();
  };

  function restore() {
    const kept = JSON.parse(localStorage.getItem(key()) || "null");
    if (!kept || kept.revision <= Number(item.field("revision").value)) return;
    const values = (name) => kept.fields.filter(([one]) => one === name).map(([, value]) => value);
    for (const control of item.form.elements) {
      if (!control.name || NOT_RESTORED.has(control.name)) continue;
      const known = values(control.name);
      if (control.type === "radio" || control.type === "checkbox") control.checked = known.includes(control.value);
      else if (known.length) control.value = known[0];
    }
    item.field("revision").value = kept.revision;
    for (const flags of item.all(".item-flags")) flags.open = Boolean(flags.querySelector(":checked"));
    item.notice = "Restored.";
  }
  function sweep() {
    for (const name of Object.keys(localStorage)) {
      if (!name.startsWith(PREFIX)) continue;
      const kept = JSON.parse(localStorage.getItem(name));
      if (!(kept && Date.now() - kept.at < KEPT_MS)) localStorage.removeItem(name);
    }
  }

  function fold() {
    for (const text of item.all("[data-long]")) {
      text.classList.add("is-folded");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "button small unfold";
      button.textContent = `Show all ${text.dataset.long} words`;
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => {
        text.classList.remove("is-folded");
        button.remove();
        item.refresh();
      });
      text.after(button);
    }
  }

  // Which part stands at the top of a small screen.
  function spy() {
    const tabs = [...document.querySelectorAll(".item-tabs a")];
    const parts = tabs.map((tab) => document.querySelector(tab.hash)).filter(Boolean);
    if (!parts.length) return;
    const mark = () => {
      const passed = parts.filter((part) => part.getBoundingClientRect().top < 120);
      // The last part may be too short to come to the top.
      const isAtEnd = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
      const current = isAtEnd ? parts[parts.length - 1] : passed.length ? passed[passed.length - 1] : parts[0];
      for (const tab of tabs) {
        if (tab.hash === `#${current.id}`) tab.setAttribute("aria-current", "true");
        else tab.removeAttribute("aria-current");
      }
    };
    spy.end?.();
    window.addEventListener("scroll", mark, { passive: true });
    spy.end = () => window.removeEventListener("scroll", mark);
    mark();
  }

  item.mount = () => {
    for (const element of document.querySelectorAll("[data-js]")) element.hidden = false;
    for (const element of document.querySelectorAll("[data-no-js], [data-rank-field]")) element.hidden = true;
    item.form = document.getElementById("answer-form");
    item.busy = false;
    spy();
    if (!item.form) return;
    restore();
    active_ms = Number(item.field("active_ms").value);
    last_ms = Date.now();
    dirty = false;
    if (!item.field("shown_ms").value) item.field("shown_ms").value = Date.now();
    const coarse = window.matchMedia("(pointer: coarse)").matches;
    item.field("device").value = !coarse ? "desktop" : Math.min(screen.width, screen.height) < 600 ? "phone" : "tablet";
    if (item.form.querySelector("fieldset:disabled")) item.form = null;
    else {
      fold();
      for (const part of item.parts) part.mount(item.form);
      item.refresh();
    }
  };

  const isOurs = (event) => item.form && item.form.contains(event.target) && event.target.name;
  document.addEventListener("input", (event) => {
    if (isOurs(event)) item.changed();
  });
  document.addEventListener("DOMContentLoaded", () => {
    sweep();
    item.mount();
  });
})();
