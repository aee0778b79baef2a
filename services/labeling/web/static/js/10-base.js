// The whole site: what every page does with a script. Nothing needs it; pages work without.
"use strict";

const andon = {
  // One line that is shown and read aloud.
  say(text) {
    document.getElementById("live").textContent = text;
  },
  // Sends fields as a form, with the page's CSRF token. The answer is JSON, or null where there is none.
  // Rejects with an Error whose `status` is 0 when the network is away.
  async post(path, fields, options = {}) {
    const body = new URLSearchParams(fields);
    body.set("csrf", andon.csrf());
    let response;
    try {
      response = await fetch(path, {
        method: "POST", body, headers: { Accept: "application/json" }, credentials: "same-origin", ...options,
      });
    } catch (cause) {
      throw Object.assign(new Error("You are offline."), { status: 0, cause });
    }
    const answer = response.status === 204 ? null : await response.json().catch(() => null);
    if (!response.ok) {
      throw Object.assign(new Error((answer && answer.error) || "That did not work."), { status: response.status });
    }
    return answer;
  },
  // The last word of a page that is going away.
  beacon(path, fields) {
    const body = new URLSearchParams(fields);
    body.set("csrf", andon.csrf());
    return navigator.sendBeacon(path, body);
  },
  csrf() {
    const field = document.querySelector("input[name=csrf]");
    return field ? field.value : "";
  },
};

(() => {
  // A menu closes with Escape and when something else is used.
  const menus = [...document.querySelectorAll("details.cord, details.account")];
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus) {
      if (!menu.open) continue;
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  document.addEventListener("click", (event) => {
    for (const menu of menus) if (!menu.contains(event.target)) menu.open = false;
  });
  for (const menu of menus) {
    menu.addEventListener("toggle", () => {
      const first = menu.open && menu.querySelector("textarea");
      if (first) first.focus();
    });
  }
  // What is shown once is selected at a touch, ready to be copied.
  document.addEventListener("focusin", (event) => {
    if (event.target.matches("input[data-select]")) event.target.select();
  });
  // A form that asks before it acts says so.
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });
})();
