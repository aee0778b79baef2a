// The researcher's side. Progress refreshes by itself; a file may fill a text field. Both work without.
(() => {
  const live = document.querySelector("[data-live]");
  if (live) {
    const everyMs = Number(live.dataset.live) * 1000;
    const refresh = async () => {
      if (document.visibilityState === "visible" && !live.contains(document.activeElement)) {
        try {
          const response = await fetch(location.href, { credentials: "same-origin" });
          if (response.ok && !response.redirected) {
            const page = new DOMParser().parseFromString(await response.text(), "text/html");
            const fresh = page.querySelector("[data-live]");
            if (fresh) live.replaceChildren(...fresh.childNodes);
          }
        } catch {
          // Offline: what stands there stays, and the next turn tries again.
        }
      }
      setTimeout(refresh, everyMs);
    };
    setTimeout(refresh, everyMs);
  }
  const here = document.querySelector(".project-menu [aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - (here.parentElement.clientWidth - here.offsetWidth) / 2;
  for (const row of document.querySelectorAll("[data-fills]")) {
    const field = document.getElementById(row.dataset.fills);
    row.hidden = false;
    row.querySelector("input").addEventListener("change", async (event) => {
      const file = event.target.files[0];
      if (file) field.value = await file.text();
      andon.say(file ? `${file.name} is in the field.` : "");
    });
  }
})();
