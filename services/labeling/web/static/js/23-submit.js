// Sending an item's forms without leaving the page: the next item comes as the answer and takes this one's
// place. The page is never left before the server has said yes; away from the network it waits and tries again.
(() => {
  const item = andon.item;
  const MAX_WAIT_S = 30;
  let waiting = 0; // a timer
  let tries = 0;
  let shown = window.location.pathname;

  function swap(text, address) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const main = next.querySelector("main");
    if (!main) return window.location.reload();
    for (const part of ["main", ".actions-bar"]) document.querySelector(part).replaceWith(document.adoptNode(next.querySelector(part)));
    for (const old of document.querySelectorAll("body > .banner")) old.remove();
    for (const banner of next.querySelectorAll("body > .banner")) main.before(document.adoptNode(banner));
    const cord = ".cord-button";
    const [here, there] = [document.querySelector(cord), next.querySelector(cord)];
    if (here && there) {
      here.className = there.className;
      here.textContent = there.textContent;
    }
    document.title = next.title;
    document.body.className = next.body.className;
    const path = new URL(address, window.location.href).pathname;
    if (path !== window.location.pathname) window.history.pushState(null, "", path);
    shown = path;
    window.scrollTo(0, 0);
    item.mount();
    const problems = document.getElementById("problems");
    (problems || main).focus({ preventScroll: true });
    return undefined;
  }
  // Back and forward to another page load it; a jump inside this one is none of these.
  window.addEventListener("popstate", () => {
    if (window.location.pathname !== shown) window.location.reload();
  });

  async function renewToken() {
    const answer = await fetch("/cord", { credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("input[name=csrf]");
    if (!answer.ok || answer.redirected || !fresh) return false;
    for (const field of document.querySelectorAll("input[name=csrf]")) field.value = fresh.value;
    return true;
  }

  function busy(is_busy) {
    item.busy = is_busy;
    item.refresh();
    if (is_busy) item.status("Sending …");
  }
  function later(form, why) {
    busy(false);
    tries += 1;
    const wait_s = Math.min(2 ** tries, MAX_WAIT_S);
    item.status(`${why} Your answer is kept here and is sent again by itself.`, true);
    waiting = setTimeout(() => send(form), wait_s * 1000);
  }

  async function send(form, may_renew = true) {
    clearTimeout(waiting);
    waiting = 0;
    if (!form.isConnected || item.busy) return;
    const is_answer = form === item.form;
    if (is_answer) item.stampSubmit();
    const key = item.form ? item.key() : "";
    const body = new URLSearchParams(new FormData(form));
    busy(true);
    let response;
    let text;
    try {
      response = await fetch(form.getAttribute("action"), {
        method: "POST", body, headers: { Accept: "text/html", "X-Andon-Swap": "1" }, credentials: "same-origin",
      });
      text = await response.text();
    } catch {
      return later(form, "You are offline.");
    }
    if (response.status === 401 || (response.redirected && new URL(response.url).pathname === "/sign-in")) {
      busy(false);
      return item.status("Your session has ended. Sign in in another window, then send this again.", true);
    }
    if (response.status === 403 && may_renew && (await renewToken())) {
      busy(false);
      return send(form, false);
    }
    if (response.status >= 500 || response.status === 429) return later(form, "The service is busy.");
    if (response.status === 403) {
      busy(false);
      return item.status("This was refused. Copy what you wrote and load the page again.", true);
    }
    tries = 0;
    if (response.ok) item.forget(key);
    item.notice = response.ok ? "Recorded." : "";
    if (response.status !== 400) item.form = null; // nothing of it is to be kept any more
    swap(text, response.redirected ? response.url : response.headers.get("X-Andon-Path") || window.location.href);
    const progress = document.querySelector("[data-progress]");
    const heading = document.querySelector("main h1");
    const where = progress ? `Next item. ${progress.textContent}` : heading ? heading.textContent : "";
    andon.say(response.ok ? `Recorded. ${where}` : where);
    return undefined;
  }

  item.submit = () => {
    if (!item.form || item.busy) return;
    const lack = item.lacking();
    if (!lack) {
      send(item.form);
      return;
    }
    item.status(`${lack[0]}.`, true);
    if (lack[1]) lack[1].focus();
  };
  document.addEventListener("submit", (event) => {
    if (event.target === item.form) {
      event.preventDefault();
      item.submit();
    } else if (event.target.id === "skip-form") {
      event.preventDefault();
      send(event.target);
    }
  });
  // Whoever changes something has not sent it: no more by itself.
  document.addEventListener("input", (event) => {
    if (waiting && item.form && item.form.contains(event.target)) {
      clearTimeout(waiting);
      waiting = 0;
    }
  });
  window.addEventListener("online", () => {
    if (waiting && item.form) send(item.form);
  });
})();
