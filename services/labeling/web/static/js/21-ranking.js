// A ranking from best to worst: letters append, "=" ties the next with the last, Backspace takes back. The
// places stand in the selects that the page has without scripts, so both send the same form.
(() => {
  const item = andon.item;
  let tiers = [];
  let ties = false; // the next letter joins the last tier
  let dropped_ms = -1000;

  const placed = () => tiers.flat();
  const words = () =>
    tiers.map((tier) => (tier.length > 1 ? `${tier.join(" equal with ")}` : tier[0])).join(", then ");

  function read() {
    const by_rank = new Map();
    for (const letter of item.letters()) {
      const rank = Number(item.field(`rank_${letter}`).value);
      if (rank) by_rank.set(rank, [...(by_rank.get(rank) || []), letter]);
    }
    tiers = [...by_rank.keys()].sort((a, b) => a - b).map((rank) => by_rank.get(rank));
    ties = false;
  }
  function write() {
    for (const letter of item.letters()) {
      const rank = tiers.findIndex((tier) => tier.includes(letter)) + 1;
      item.field(`rank_${letter}`).value = rank || "";
    }
    draw();
    item.changed();
    andon.say(placed().length ? words() : "Nothing is placed.");
  }
  function draw() {
    const strip = item.form.querySelector("[data-strip]");
    const separator = (text) => Object.assign(document.createElement("span"), { className: "order-sep", textContent: ` ${text} ` });
    const nodes = [];
    tiers.forEach((tier, index) => {
      if (index) nodes.push(separator(">"));
      tier.forEach((letter, place) => {
        if (place) nodes.push(separator("="));
        const chip = Object.assign(document.createElement("span"), { className: "letter-chip", textContent: letter });
        chip.dataset.chip = letter;
        nodes.push(chip);
      });
    });
    if (ties) nodes.push(separator("= …"));
    if (!nodes.length) {
      nodes.push(Object.assign(document.createElement("span"), { className: "order-empty", textContent: "Begin with the best" }));
    }
    strip.replaceChildren(...nodes);
    const taken = placed();
    for (const button of item.all("[data-take]")) {
      const letter = button.dataset.take;
      button.disabled = taken.includes(letter);
      const label = button.querySelector("[data-take-words]");
      if (label) label.textContent = button.disabled ? `${letter} is number ${tiers.findIndex((tier) => tier.includes(letter)) + 1}` : `Put ${letter} next`;
    }
    for (const slot of item.all("[data-slot]")) slot.classList.toggle("is-placed", taken.includes(slot.dataset.slot));
    const tie = item.form.querySelector("[data-tie]");
    tie.disabled = !taken.length || taken.length === item.letters().length;
    tie.setAttribute("aria-pressed", String(ties));
    item.form.querySelector("[data-untake]").disabled = !taken.length;
  }

  const ranking = {
    mount() {
      if (item.kind() !== "rank") return;
      read();
      draw();
    },
    take(letter) {
      if (placed().includes(letter)) return andon.say(`${letter} has its place already.`);
      if (ties && tiers.length) tiers[tiers.length - 1].push(letter);
      else tiers.push([letter]);
      ties = false;
      return write();
    },
    tie() {
      const count = placed().length;
      if (!count || count === item.letters().length) return;
      ties = !ties;
      draw();
      andon.say(ties ? `The next is equal with ${placed()[count - 1]}.` : "The next stands alone.");
    },
    untake() {
      if (ties) return ranking.tie();
      const last = tiers[tiers.length - 1];
      if (!last) return undefined;
      last.pop();
      if (!last.length) tiers.pop();
      return write();
    },
    // Moves a letter before, after or into the tier of another one; without one, to the end.
    move(letter, where, other) {
      if (letter === other) return;
      tiers = tiers.map((tier) => tier.filter((one) => one !== letter)).filter((tier) => tier.length);
      const index = tiers.findIndex((tier) => tier.includes(other));
      if (index < 0) tiers.push([letter]);
      else if (where === "tie") tiers[index].push(letter);
      else tiers.splice(where === "before" ? index : index + 1, 0, [letter]);
      ties = false;
      write();
    },
  };
  item.parts.push(ranking);
  item.ranking = ranking;

  document.addEventListener("click", (event) => {
    if (!item.form) return;
    const button = event.target.closest("[data-take], [data-tie], [data-untake]");
    if (!button || !item.form.contains(button) || performance.now() - dropped_ms < 50) return; // it ended a drag
    if (button.matches("[data-take]")) ranking.take(button.dataset.take);
    else if (button.matches("[data-tie]")) ranking.tie();
    else ranking.untake();
  });

  // Dragging, with a mouse only: a finger scrolls.
  let drag = null;
  const DROPS = ["drop-before", "drop-after", "drop-tie"];
  const unmark = () => {
    for (const chip of document.querySelectorAll(".letter-chip")) chip.classList.remove(...DROPS);
  };
  function target(event) {
    const below = document.elementFromPoint(event.clientX, event.clientY);
    const chip = below && below.closest("[data-chip]");
    if (chip) {
      const box = chip.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      return { other: chip.dataset.chip, where: share < 0.3 ? "before" : share > 0.7 ? "after" : "tie", chip };
    }
    return below && below.closest("[data-strip]") ? { where: "after" } : null;
  }
  document.addEventListener("pointerdown", (event) => {
    const chip = event.target.closest && event.target.closest(".letter-chip:not(:disabled)");
    if (!item.form || !chip || event.pointerType !== "mouse" || event.button || !item.form.contains(chip)) return;
    drag = { chip, letter: chip.dataset.chip || chip.dataset.take, x: event.clientX, y: event.clientY, moved: false };
    if (chip.dataset.chip) event.preventDefault();
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(x, y) < 6) return;
    drag.moved = true;
    drag.chip.classList.add("is-dragged");
    drag.chip.style.transform = `translate(${x}px, ${y}px)`;
    unmark();
    const found = target(event);
    if (found && found.chip) found.chip.classList.add(`drop-${found.where}`);
  });
  document.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { chip, letter, moved } = drag;
    drag = null;
    if (!moved) return;
    const found = target(event);
    chip.classList.remove("is-dragged");
    chip.style.transform = "";
    unmark();
    if (found) ranking.move(letter, found.where, found.other);
    dropped_ms = performance.now();
  });
})();
